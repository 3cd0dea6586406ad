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

PartOf = Callable[[Any], tuple[Any, bool]]


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

    def before(self, optimizer: Any, part_of: PartOf, done: int, *, with_gradients: bool) -> None:
        """Before a step of the optimizer that sets the pace. ``with_gradients``: they are there already."""
        if self._first:
            self._try("facts", self._begin_facts, optimizer, part_of, done)
            self._first = False
        if self.probing:
            self._try("probes", self._probe_before, optimizer, with_gradients)

    def after(self, optimizer: Any, part_of: PartOf, step: int, *, paces: bool, with_gradients: bool) -> None:
        """``step``: that is over. ``paces``: by the optimizer that sets the pace. ``with_gradients``: they are there only now."""
        if self._facts is not None:
            self._try(
                "facts", self._facts.step_ended if paces else self._facts.other_steps, *([] if paces else [optimizer])
            )
            if self._facts is not None and self._facts.complete:
                self._try("facts", self._tell_facts)
        if paces:
            self._try("probes", self._probe_after, optimizer, part_of, step, with_gradients)

    def took(self, seconds: float) -> None:
        """A round."""
        if self._probes is not None:
            self._probes.took(seconds)

    def send(self) -> None:
        if self._probes is not None:
            self._try("probes", self._send_probes)

    def end(self) -> None:
        if self._facts is not None:
            self._try("facts", self._tell_facts)
        self.send()
        self._drop_probes()

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

    def _begin_facts(self, optimizer: Any, part_of: PartOf, done: int) -> None:
        if self._facts is None:
            self._facts = _part("facts").ScriptFacts(_part("private").private, self.loaded)
        self._facts.step_begins(optimizer, part_of(optimizer)[0], done)

    def _tell_facts(self) -> None:
        document = self._facts.document(scaled=self.scaled)
        self._facts = None
        self._tell({"type": "facts", **document})

    # --- probes -------------------------------------------------------------------------------------------------------

    def _probe_before(self, optimizer: Any, with_gradients: bool) -> None:
        self._probes.keep_weights()
        if with_gradients:
            self._probes.look_at_gradients(optimizer)

    def _probe_after(self, optimizer: Any, part_of: PartOf, step: int, with_gradients: bool) -> None:
        part, _ = part_of(optimizer)
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
            self._tell(self._probes.header)
        elif self.probing:
            if with_gradients:
                self._probes.look_at_gradients(optimizer)
            self._probes.updated()
        self._probes.begin(step + 1)

    def _send_probes(self) -> None:
        found = self._probes.sent()
        if found is not None:
            self._tell({"type": "probes", "probes": found[0]}, found[1])

    def _drop_probes(self) -> None:
        if self._probes is not None:
            self.send()
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
