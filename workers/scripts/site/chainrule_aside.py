"""What is looked at beside the norms of each step: facts of the first steps, probes now and then. When anything in it fails it is left out, with one
word to the worker; the norms go on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

SHARE = 0.5  # of the budget, for probes; the norms of each step have the rest


class Aside:
    def __init__(self, tell: Callable[..., None], budget: float) -> None:
        """``tell(header, payload)``: to the worker. ``budget``: cost over the steps' time; 1 and more: probes at every step."""
        self._tell, self._budget = tell, budget
        self.loaded: weakref.WeakSet[Any] = weakref.WeakSet()  # networks that were given weights
        self.scaled = False  # whether a loss scaler is at work
        self._facts: Any = None
        self._probes: Any = None
        self._first = True  # nothing was seen yet
        self._left_out: set[str] = set()
        self._spent = 0.0  # on probes of optimizers that are gone
        self._waiting: list[tuple[dict[str, Any], bytes]] = []  # to be told with what is sent next

    @property
    def probing(self) -> bool:
        return self._probes is not None and bool(self._probes.probing)

    @property
    def cost(self) -> float:
        """Seconds."""
        return self._spent + (self._probes.cost if self._probes is not None else 0.0)

    # --- what the observer calls --------------------------------------------------------------------------------------

    def pass_begins(self, root: Any, loss: Any) -> None:
        """Before a backward pass."""
        self._try("facts", self._facts_of_a_pass, root, loss)
        if self._probes is not None:
            self._try("probes", self._probes.pass_ends)

    def step_skipped(self) -> None:
        """By a loss scaler, after the passes of a step."""
        if self._facts is not None:
            self._try("facts", self._facts.step_skipped)

    def before(
        self, optimizer: Any, part_of: Callable[[Any], Any], steps_done: Callable[[Any], int], *, with_gradients: bool
    ) -> None:
        """Before a step of the optimizer that sets the pace. ``with_gradients``: they are there already. What ``steps_done`` gives of it may have
        to be waited for."""
        if self._first:
            self._try("facts", self._begin_facts, optimizer, part_of, steps_done)
            self._first = False
        if self.probing:
            self._try("probes", self._probe_before, optimizer, with_gradients)

    def after(self, optimizer: Any, part: Any, step: int, *, paces: bool, with_gradients: bool) -> None:
        """``part``: None: nobody has looked for its networks. ``step``: that is over. ``paces``: by the optimizer that sets the pace.
        ``with_gradients``: they are there only now."""
        if self._facts is not None:
            self._try(
                "facts", self._facts.step_ended if paces else self._facts.other_steps, *([] if paces else [optimizer])
            )
            if self._facts is not None and self._facts.complete:
                self._try("facts", self._end_facts)
        if paces:
            self._try("probes", self._probe_after, optimizer, part, step, with_gradients)

    def took(self, seconds: float) -> None:
        """A round."""
        if self._probes is not None:
            self._probes.took(seconds)

    def gone(self, part: Any) -> None:
        """Its optimizer is. Python may have found out anywhere, so nothing is sent now."""
        if self._facts is not None and self._facts.is_of(part):
            self._try("facts", self._end_facts)
        if self._probes is not None and self._probes.is_of(part):
            self._drop_probes()

    def send(self) -> None:
        if self._probes is not None:
            self._try("probes", self._read_probes)
        waiting, self._waiting = self._waiting, []
        for header, payload in waiting:
            self._tell(header, payload)

    def end(self) -> None:
        if self._facts is not None:
            self._try("facts", self._end_facts)
        self._drop_probes()
        self.send()

    def failed(self, error: Exception) -> None:
        """The observer has."""
        self._leave_out("observer", error)
        self._leave_out("facts", error, told=True)
        self._leave_out("probes", error, told=True)

    # --- facts --------------------------------------------------------------------------------------------------------

    def _facts_of_a_pass(self, root: Any, loss: Any) -> None:
        if self._first and self._facts is None:
            self._facts = _part("facts").ScriptFacts(_part("private").private, self.loaded)
        if self._facts is not None:
            self._facts.pass_begins(root, loss)

    def _begin_facts(self, optimizer: Any, part_of: Callable[[Any], Any], steps_done: Callable[[Any], int]) -> None:
        if self._facts is None:
            self._facts = _part("facts").ScriptFacts(_part("private").private, self.loaded)
        self._facts.step_begins(optimizer, part_of(optimizer), steps_done(optimizer))

    def _end_facts(self) -> None:
        document = self._facts.document(scaled=self.scaled)
        self._facts = None
        self._waiting.append(({"type": "facts", **document}, b""))

    # --- probes -------------------------------------------------------------------------------------------------------

    def _probe_before(self, optimizer: Any, with_gradients: bool) -> None:
        self._probes.keep_weights()
        if with_gradients:
            self._probes.look_at_gradients(optimizer)

    def _probe_after(self, optimizer: Any, part: Any, step: int, with_gradients: bool) -> None:
        if part is None:
            return
        if self._probes is None or not self._probes.is_of(part):
            self._drop_probes()
            if (
                part.sharded or self._budget <= 0
            ):  # parts of other workers would be needed, and asking them changes the script
                self._left_out.add("probes")
                return
            facts = _part("facts")
            budget = self._budget if self._budget >= 1 else SHARE * self._budget
            self._probes = _part("probes").ScriptProbes(
                _part("private").private,
                optimizer,
                part,
                facts.Parameters(part),
                budget,
                facts.counted,
                facts.compiles(),
            )
            self._waiting.append((self._probes.header, b""))
        elif self.probing:
            if with_gradients:
                self._probes.look_at_gradients(optimizer)
            self._probes.updated()
        self._probes.begin(step + 1)

    def _read_probes(self) -> None:
        found = self._probes.sent()
        if found is not None:
            self._waiting.append(({"type": "probes", "probes": found[0]}, found[1]))

    def _drop_probes(self) -> None:
        if self._probes is not None:
            self._try("probes", self._read_probes)
        if self._probes is not None:
            self._spent += self._probes.cost
            self._probes.close()
            self._probes = None

    # --- what must not fail a script ----------------------------------------------------------------------------------

    def _try(self, what: str, function: Callable[..., None], *arguments: Any) -> None:
        if what in self._left_out:
            return
        try:
            function(*arguments)
        except Exception as error:
            self._leave_out(what, error)

    def _leave_out(self, what: str, error: Exception, *, told: bool = False) -> None:
        self._left_out.add(what)
        for each in (self._facts,) if what == "facts" else (self._probes,) if what == "probes" else ():
            try:
                if each is not None:
                    each.close()
            except Exception as another:
                error = another
        if what == "facts":
            self._facts = None
        elif what == "probes":
            self._spent, self._probes = self.cost, None
        if told:
            return
        try:
            self._tell({"type": "trouble", "of": what, "error": f"{type(error).__name__}: {error}"[:2000]})
        except Exception as another:
            if what != "observer":  # which says so itself
                print(f"chainrule: {what} of this script are not known: {error!r}; {another!r}", file=sys.stderr)


def _part(name: str) -> Any:
    """The file beside this one, loaded by its place: the script's own modules may have its name."""
    key = f"_chainrule_{name}"
    if key not in sys.modules:
        file = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"chainrule_{name}.py")
        spec = importlib.util.spec_from_file_location(key, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]
