"""Watches a script's optimizers from inside its process: at each step the norm of every layer's gradient, the loss, the learning rate.

Nothing of the script changes: gradients are read, never written, no random number is drawn, and the device is waited for only when rows are
sent, twice a second. It stands alone, with torch and the standard library, because the script may have modules of the same names as ours; what
looks closer now and then (``Aside``) imports ours under other names, and is left out when it fails.

A *round* is one step of the optimizer that sets the pace (the first one that steps) with what the others do until its next one; so a model with two
optimizers has one row a step, and so has a pair of networks that train against each other.

What ``torch.compile`` has compiled together with the optimizer's step, and what a CUDA graph replays, is not seen.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import socket
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROWS = 64
SEND_SECONDS = 0.5
FREE_ROUNDS = 25  # at the beginning, before there is anything to budget with
FREE_PARTS = 4  # optimizers whose networks are looked for without a budget; some scripts make a new one for every step
IMPATIENCE = 16  # steps of another optimizer in one round, after which that one sets the pace
SEND_TIMEOUT = 2.0


class Observer:
    @classmethod
    def from_environment(cls, part: Any, aside: Any, repairing: Any) -> Observer:
        """``part``, ``aside`` and ``repairing``: the classes of these names, which were loaded as this one was."""
        found = cls(
            os.environ["CHAINRULE_OBSERVER"],
            part,
            aside,
            measures=os.environ.get("RANK", "0") == "0",
            budget=float(os.environ.get("CHAINRULE_OVERHEAD_BUDGET", "0.02")),
        )
        found.repairing = repairing.from_environment(found._tell)
        return found

    def __init__(self, address: str, part: Any, aside: Any, *, measures: bool, budget: float) -> None:
        """``measures``: else only steps are counted, as a sign of life; gradients are alike on all ranks."""
        self._address, self._new, self._measures, self._budget = address, part, measures, budget
        self._aside: Any = aside(self._tell, budget) if measures else None
        self.repairing: Any = None  # what is changed of the script's steps; None: nothing ever is
        self._pid = os.getpid()
        self._socket: socket.socket | None = None
        self.off = False
        self._losses: list[torch.Tensor] = []
        self._scaled: dict[int, tuple[Any, torch.Tensor]] = {}
        self._parts: dict[int, Any] = {}  # id of an optimizer -> Part
        self._parts_made = 0
        self._layers: list[str] = []
        self._roots: dict[
            int, Any
        ] = {}  # id of a network -> a weak reference to it, and what its layers' names begin with
        self._ring: Any = None
        self._pending: list[list[Any]] = []  # [step, time, seconds, learning rate, whether the loss is known]
        self._pace: Any = None  # a weak reference to the optimizer that sets it
        self._stepping: Any = None  # a weak reference to the optimizer whose step is under way; it may step others, on the same parameters
        self._measured_within = False  # the gradients of the step that is under way
        self._steps_begun = 0
        self._others: dict[int, int] = {}
        self._first_step = 0
        self._rounds = 0
        self._measuring = False
        self._spent = 0.0
        self._cost = 0.0
        self._began = self._round_began = self._sent_at = time.perf_counter()

    # --- putting it in place ------------------------------------------------------------------------------------------

    def optimizers(self, module: Any) -> None:
        before, after = self._guarded(self._before), self._guarded(self._after)
        repairing = self.repairing
        if repairing is not None:  # its rate is the one that is measured, its gradient is not
            change = repairing.guarded(lambda optimizer: repairing.before(optimizer, self._first_step + self._rounds))
            put_back = repairing.guarded(repairing.after)
            module.register_optimizer_step_pre_hook(lambda optimizer, *_: change(optimizer))
        module.register_optimizer_step_pre_hook(before)
        if repairing is not None:
            mend, measure = repairing.guarded(repairing.gradients), self._guarded(self._within)
            module.register_optimizer_step_pre_hook(lambda *given: mend(*given, measure))
            module.register_optimizer_step_post_hook(lambda optimizer, *_: put_back(optimizer))
        module.register_optimizer_step_post_hook(after)
        atexit.register(self.end)
        if self._measures:
            self._watch_losses()

    def scalers(self, module: Any) -> None:
        """Of losses that are scaled before the backward pass, the unscaled value is kept; of a step that is skipped, none is."""
        if not self._measures:
            return
        scale, step = module.GradScaler.scale, module.GradScaler.step

        def scaled(scaler: Any, outputs: Any) -> Any:
            result = scale(scaler, outputs)
            try:
                self._aside.scaled = self._aside.scaled or scaler.is_enabled()
                pairs = zip(outputs, result, strict=True) if isinstance(outputs, list | tuple) else [(outputs, result)]
                living = {key: kept for key, kept in self._scaled.items() if kept[0]() is not None}
                self._scaled = living | {id(each): (weakref.ref(each), loss.detach()) for loss, each in pairs}
            except Exception:
                self._scaled = {}
            return result

        def stepped(scaler: Any, optimizer: Any, *arguments: Any, **named: Any) -> Any:
            begun = self._steps_begun
            result = step(scaler, optimizer, *arguments, **named)
            if self._steps_begun == begun:
                self._losses.clear()
                self._aside.step_skipped()
            return result

        module.GradScaler.scale, module.GradScaler.step = _like(scaled, scale), _like(stepped, step)

    def modules(self, module: Any) -> None:
        """Networks that are given weights do not begin untrained."""
        if not self._measures:
            return
        load = module.Module.load_state_dict

        def loaded(network: Any, *arguments: Any, **named: Any) -> Any:
            try:
                self._aside.loaded.add(network)
            except Exception:
                self._aside.loaded.clear()
            return load(network, *arguments, **named)

        module.Module.load_state_dict = _like(loaded, load)

    def _watch_losses(self) -> None:
        """``loss.backward()`` calls ``torch.autograd.backward``."""
        import torch

        backward = torch.autograd.backward

        def watched(tensors: Any, *arguments: Any, **named: Any) -> None:
            if self.off or torch.compiler.is_compiling() or os.getpid() != self._pid or _captures():
                backward(tensors, *arguments, **named)
                return
            if isinstance(tensors, Iterator):  # which gives its tensors once
                tensors = tuple(tensors)
            before = len(self._losses)
            self._note_loss(tensors)
            try:
                backward(tensors, *arguments, **named)
            except BaseException:
                del self._losses[before:]
                raise

        torch.autograd.backward = _like(watched, backward)

    def _note_loss(self, tensors: Any) -> None:
        import torch

        try:
            for root in [tensors] if isinstance(tensors, torch.Tensor) else tensors:
                if root.numel() == 1:
                    kept = self._scaled.pop(id(root), None) if self._scaled else None
                    loss = kept[1] if kept and kept[0]() is root else root.detach()
                    # Scripts add up their losses in place, or average them over the ranks, before the step.
                    self._losses.append(getattr(loss, "_local_tensor", loss).clone())
                    self._aside.pass_begins(root, self._losses[-1])
            if len(self._losses) > 4096:  # backward passes without a step
                del self._losses[:-1]
        except Exception:
            self._losses = []

    def _guarded(self, function: Callable[..., None]) -> Any:
        """What goes wrong in it ends the observation, not the script. ``torch.compile`` traces it as if there were nothing in it."""
        import torch

        def called(*arguments: Any) -> None:
            if self.off or torch.compiler.is_compiling() or os.getpid() != self._pid or _captures():
                return
            try:
                function(*arguments)
            except Exception as error:
                self.off = True
                if self._aside is not None:
                    self._aside.failed(error)
                print(f"chainrule: this process is not observed any more: {error!r}", file=sys.stderr)

        return called

    def end(self) -> None:
        """When the script ends: what has not been sent yet is."""
        self._guarded(self._end)()

    # --- at each step -------------------------------------------------------------------------------------------------

    def _before(self, optimizer: Any, arguments: Any, named: Any) -> None:
        self._steps_begun += 1
        outer = self._stepping() if self._stepping is not None else None
        if outer is not None and outer is not optimizer:
            return
        self._stepping = weakref.ref(optimizer)
        closure = _closure(arguments, named) is not None
        if not closure:
            self._step(optimizer, 0)
        if self._aside is not None and (self._pace is None or self._pace() is optimizer):
            self._aside.before(optimizer, self._part_of, _steps_done, with_gradients=not closure)

    def _after(self, optimizer: Any, arguments: Any, named: Any) -> None:
        """With a closure, which is called within the step, the gradients are there only after it."""
        if self._stepping is None or self._stepping() is not optimizer:
            return
        self._stepping = None
        closure, within, self._measured_within = _closure(arguments, named) is not None, self._measured_within, False
        if closure and not within:
            self._step(optimizer, 1)
        if self._aside is not None:
            step, part = self._first_step + self._rounds, self._known(optimizer)
            self._aside.after(optimizer, part, step, paces=self._pace() is optimizer, with_gradients=closure)

    def _within(self, optimizer: Any) -> None:
        """In a closure that was called within the step, before its gradients are changed."""
        if not self._measured_within and self._stepping is not None and self._stepping() is optimizer:
            self._measured_within = True
            self._step(optimizer, 0)

    def _step(self, optimizer: Any, done: int) -> None:
        entered = time.perf_counter()
        key = id(optimizer)
        if self._pace is None or self._pace() is None:
            self._take_pace(optimizer, done)
        if self._pace() is optimizer:
            self._others.clear()
            self._begin_round(optimizer, entered)
        else:
            self._others[key] = self._others.get(key, 0) + 1
            if self._others[key] > IMPATIENCE:
                self._pace = weakref.ref(optimizer)
        if self._measuring:
            self._measure(optimizer)
        self._losses.clear()
        now = time.perf_counter()
        if len(self._pending) > ROWS - 1 or now - self._sent_at > SEND_SECONDS:
            self._send(keep=1)
            now = time.perf_counter()
        if self._measuring:
            self._cost = 0.8 * self._cost + 0.2 * (now - entered) if self._cost else now - entered
        self._spent += now - entered

    def _take_pace(self, optimizer: Any, done: int) -> None:
        """The first step of all. One that goes on from a checkpoint of its own knows how many it has done."""
        self._pace = weakref.ref(optimizer)
        if self._rounds == 0:
            self._first_step = max(0, _steps_done(optimizer) - done)
            self._began = self._round_began = time.perf_counter()

    def _begin_round(self, optimizer: Any, now: float) -> None:
        self._rounds += 1
        seconds, self._round_began = now - self._round_began, now
        closer, cost = (self._aside.probing, self._aside.cost) if self._aside is not None else (False, 0.0)
        within = self._spent + self._cost + cost <= self._budget * (now - self._began)
        looks = self._known(optimizer) is not None or self._parts_made < FREE_PARTS
        self._measuring = self._measures and ((self._rounds <= FREE_ROUNDS and looks) or within or closer)
        if self._aside is not None and self._rounds > 1:
            self._aside.took(seconds)
        if self._measuring:
            # Of a first step nobody knows when it began.
            seconds = seconds if self._rounds > 1 else 0.0
            self._pending.append([self._first_step + self._rounds, time.time(), seconds, _rate(optimizer), False])

    def _measure(self, optimizer: Any) -> None:
        import torch

        began = time.perf_counter()
        new = self._known(optimizer) is None
        part = self._part_of(optimizer)
        if new and self._parts_made <= FREE_PARTS:
            self._spent -= time.perf_counter() - began  # a few times, and not again and again
        with torch.no_grad():
            row = self._ring[len(self._pending) - 1]
            if not self._others:  # the first of the round: what the others have measured last still stands
                row.copy_(self._ring[len(self._pending) - 2])
                row[0], row[1] = float("nan"), 0.0
            part.measure(row[2:], optimizer)
            skipped = getattr(optimizer, "found_inf", None)  # of a fused optimizer, which skips the step itself
            if skipped is not None:
                row[1] += skipped.to(row.device, row.dtype).sum()
            if self._losses:
                # What a line search tries is one loss at several places; else each is a part of the step's loss.
                found = self._losses[:1] if type(optimizer).__name__ == "LBFGS" else self._losses
                losses = [loss.reshape(()).to(row.device, row.dtype) for loss in found]
                total = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
                row[0] = row[0] + total if self._pending[-1][4] else total
                self._pending[-1][4] = True

    def _known(self, optimizer: Any) -> Any:
        part = self._parts.get(id(optimizer))
        return part if part is not None and part.is_of(optimizer) else None

    def _part_of(self, optimizer: Any) -> Any:
        return self._known(optimizer) or self._new_part(optimizer)

    def _new_part(self, optimizer: Any) -> Any:
        self._send(keep=1)
        self._parts_made += 1
        key = id(optimizer)
        self._parts = {other: part for other, part in self._parts.items() if other == key or part.alive()}
        taken = [name for other, part in self._parts.items() if other != key for name in part.names]
        part = self._parts[key] = self._new(optimizer, taken, self._roots, self._guarded(self._gone))
        layers = list(dict.fromkeys(name for each in self._parts.values() for name in each.names))
        if self._ring is None or set(layers) != set(self._layers):
            self._make_ring(layers, part.device)
            self._tell({"type": "layers", "layers": layers, "sharded": part.sharded})
        for each in self._parts.values():
            each.find_rows(self._layers)
        return part

    def _make_ring(self, layers: list[str], device: Any) -> None:
        import torch

        old, place = self._ring, {name: index for index, name in enumerate(self._layers, 2)}
        # Loss, whether the step was skipped, norms.
        self._ring = torch.zeros((ROWS + 1, 2 + len(layers)), dtype=torch.float64, device=device)
        if old is not None:
            kept = [(index, place[name]) for index, name in enumerate(layers, 2) if name in place]
            new, before = zip((0, 0), (1, 1), *kept, strict=True)
            self._ring[:, list(new)] = old[:, list(before)].to(device)
        self._layers = layers

    def _gone(self, part: Any) -> None:
        """Its optimizer is; what it has trained must not be kept alive here."""
        self._parts = {key: each for key, each in self._parts.items() if each is not part}
        if part is not None and self._aside is not None:
            self._aside.gone(part)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _send(self, keep: int) -> None:
        """Everything but the last ``keep`` rows, which are not complete. Waits for the device."""
        self._sent_at = time.perf_counter()
        if self._aside is not None:
            self._aside.send()  # before the rows of these steps
        count = len(self._pending) - keep
        told: list[list[Any]] = []
        if count > 0:
            values = array.array("d")
            for row, (loss, skipped, *norms) in zip(self._pending[:count], self._ring[:count].tolist(), strict=True):
                if not skipped:
                    told.append(row)
                    values.extend([loss, *norms])
            self._pending = self._pending[count:]
            if keep:
                self._ring[: len(self._pending)] = self._ring[count : count + len(self._pending)].clone()
        step = self._first_step + self._rounds
        if told:
            self._tell({"type": "rows", "rows": told, "step": step}, values.tobytes())
        else:
            self._tell({"type": "beat", "step": step})

    def _end(self) -> None:
        if self._rounds:
            if self._aside is not None:
                self._aside.end()
            self._send(keep=0)
            probing = self._aside.cost if self._aside is not None else 0.0
            cost = (self._spent + probing) / max(time.perf_counter() - self._began, 1e-9)
            self._tell({"type": "end", "step": self._first_step + self._rounds, "overhead": cost})
        if self._socket is not None:
            self._socket.close()
        self.off = True

    def _tell(self, header: dict[str, Any], payload: bytes = b"") -> None:
        if self._socket is None:
            with contextlib.ExitStack() as unless_connected:
                connection = unless_connected.enter_context(socket.socket(socket.AF_UNIX))
                connection.settimeout(SEND_TIMEOUT)
                connection.connect(self._address)
                unless_connected.pop_all()
            self._socket = connection
        text = json.dumps(header).encode()
        self._socket.sendall(struct.pack("<II", len(text), len(payload)) + text + payload)


def _closure(arguments: Any, named: Any) -> Any:
    return arguments[1] if len(arguments) > 1 else named.get("closure")


def _captures() -> bool:
    """Whether a CUDA graph is being made of what is done now: nothing may wait for the device then, and what is added stays in it."""
    import torch

    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _rate(optimizer: Any) -> float | None:
    rate = optimizer.param_groups[0].get("lr")
    if rate is None or (hasattr(rate, "device") and rate.device.type != "cpu"):  # to read it would wait for the device
        return None
    return float(rate)


def _steps_done(optimizer: Any) -> int:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            done = optimizer.state[parameter].get("step") if parameter in optimizer.state else None
            if done is not None:
                return int(done)
    return 0


def _like(function: Any, original: Any) -> Any:
    import functools

    return functools.wraps(original)(function)
