"""Probes of a script's steps: the same ones as of every other kind of job, of the optimizer that sets the pace.

Everything here is called by the observer, which leaves it out once anything in it fails.
"""

from __future__ import annotations

import array
import weakref
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any


class ScriptProbes:
    def __init__(
        self,
        private: Callable[[str], ModuleType],
        optimizer: Any,
        part: Any,
        network: Any,
        budget: float,
        counted: Callable[[Any], bool],
        compiled: bool,
    ) -> None:
        """``network``: of its parameters. ``budget``: a share of the steps' time. ``counted``: whether a module is in a training pass."""
        spending = private("watch.spending")
        self._part, self._device = part, part.device
        self._spending = spending.Spending(budget)
        self._watch = forgiving(spending.Stopwatch)(events=part.device.type == "cuda")
        self._prober = private("watch.probes").Prober(
            network,
            weakref.proxy(optimizer),
            part.device,
            self._spending,
            compiled=compiled,
            watch=self._watch,
            counts=counted,
        )
        self._step = 0
        self._rows: list[tuple[int, float | None, Any]] = []  # that were not sent yet

    @property
    def header(self) -> dict[str, Any]:
        names = self._prober.names
        return {"type": "probed", "layers": names.layers, "activations": names.activations}

    @property
    def probing(self) -> bool:
        return bool(self._prober.probing)

    @property
    def cost(self) -> float:
        return float(self._spending.cost)

    def is_of(self, part: Any) -> bool:
        return self._part is part

    def took(self, seconds: float) -> None:
        self._spending.step_took(seconds)

    def begin(self, step: int) -> None:
        """Once the step before it is over."""
        self._step = step
        self._prober.agree(self._prober.vote())
        self._prober.begin(step)
        self._prober.begin_pass(True)

    def pass_ends(self) -> None:
        self._prober.begin_pass(True)

    def keep_weights(self) -> None:
        self._prober.keep_weights()
        self._fine()

    def look_at_gradients(self, optimizer: Any) -> None:
        import torch

        scale = getattr(optimizer, "grad_scale", None)  # of a fused optimizer, which takes it away itself
        one = torch.ones((), dtype=torch.float64, device=self._device)
        self._prober.look_at_gradients(one if scale is None else one / scale.to(self._device))
        self._fine()

    def updated(self) -> None:
        row = self._prober.after_update()
        self._fine()
        if row is not None:
            self._rows.append((self._step, self._spending.share, row))

    def sent(self) -> tuple[list[list[Any]], bytes] | None:
        """Steps with what probing had cost by then, and the rows themselves. Waits for the device."""
        rows, self._rows = self._rows, []
        if not rows:
            return None
        values = b"".join(array.array("d", row.tolist()).tobytes() for _, _, row in rows)
        return [[step, share] for step, share, _ in rows], values

    def close(self) -> None:
        self._prober.abandon()

    def _fine(self) -> None:
        if self._watch.error is not None:
            raise self._watch.error


def forgiving(stopwatch: type[Any]) -> Any:
    """A stopwatch that keeps what goes wrong under it: a hook must not fail a script's forward pass."""

    class Forgiving(stopwatch):  # type: ignore[misc]
        error: BaseException | None = None

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
        ) -> bool:
            try:
                super().__exit__(None, None, None)
            except Exception as own:
                error = error or own
            if error is not None and not isinstance(error, Exception):
                return False
            self.error = self.error or error
            return True

    return Forgiving
