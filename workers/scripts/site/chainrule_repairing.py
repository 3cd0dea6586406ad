"""What is changed of a script's steps (``health.mode: repair``): updates that are left out, a clipped gradient, another learning rate. Nothing else.

What holds is a small document that the worker of rank 0 writes beside the observer's socket. It is taken up between two steps, and told. Around a
step the learning rate is another one and put back behind it, so the script's own schedule sees its own values. Several ranks do the same from the
same step on: at some steps, of which all know the number, rank 0 says in the store at which they met what holds, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

EVERY, EARLY = 8, (1, 2, 4)  # steps at which ranks hear of each other
WAIT_SECONDS = 30.0  # for rank 0's word
APART_STEPS = 2 * EVERY + 1  # after which ranks that have not met by then are thought not to train together
MISSED = 3  # times that another rank's word was missing, after which nothing is changed any more
NOTHING = {"version": 0, "times": 1.0, "at_least": 0.0, "clip": None, "rewarm": 0, "rewarmed": 0}
TOLD_SKIPS = (1, 10, 100)
TOGETHER = "its ranks do not have the same gradient, or not step by step"


class Repairing:
    @classmethod
    def from_environment(cls, tell: Callable[..., None]) -> Repairing | None:
        """None: nothing is to be changed."""
        path = os.environ.get("CHAINRULE_REPAIRS")
        if not path:
            return None
        rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(path, tell, Ranks(rank, ranks) if ranks > 1 else None)

    def __init__(self, path: str, tell: Callable[..., None], ranks: Ranks | None = None) -> None:
        """``tell(header)``: to the worker. ``ranks``: None: there is one."""
        self._path, self._tell, self._ranks = path, tell, ranks
        self._stat: tuple[int, int] | None = None
        self._pid = os.getpid()
        self.off = False
        self._holds: dict[str, Any] = dict(NOTHING)
        self._wanted: dict[str, Any] = dict(NOTHING)  # by the worker; taken up when all ranks can
        self._stepping: Any = None  # a weak reference to the optimizer whose step is under way; it may step others
        self._made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # steps since it was taken up
        self._seen: weakref.WeakKeyDictionary[Any, Abilities] = weakref.WeakKeyDictionary()
        self._limits: dict[str, str] = {}
        self._steps = self._step = 0  # of all optimizers, and as the worker counts
        self._skipped = 0
        self._rates: list[tuple[dict[str, Any], Any, Any]] = []  # group, its own rate, what it is for this step
        self._withheld: list[tuple[Any, Any]] = []  # parameter, its gradient

    # --- around a step, in this order ---------------------------------------------------------------------------------

    def before(self, optimizer: Any, steps_done: int) -> None:
        """``steps_done``: as the worker counts them."""
        outer = self._stepping() if self._stepping is not None else None
        if outer is not None and outer is not optimizer:
            return
        self._put_back()  # what a step that broke off has left
        self._stepping = weakref.ref(optimizer)
        self._steps, self._step = self._steps + 1, steps_done + 1
        if optimizer not in self._seen:
            self._look_at(optimizer)
        self._take_up(steps_done)
        made = self._made.get(optimizer, 0)
        self._made[optimizer] = made + 1
        if "rate" not in self._seen[optimizer].limits:
            self._scale_rates(optimizer, made)

    def gradients(self, optimizer: Any, arguments: Any, named: Any, measure: Callable[[Any], None]) -> Any:
        """After the observer has measured them. With a closure they come within the step: then what the step is to be called with, in whose closure
        ``measure`` is called and the rest is done; else None."""
        if self._stepping is None or self._stepping() is not optimizer:
            return None
        able = self._seen[optimizer]
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        if closure is None:
            self._mend(optimizer)
            return None
        if not able.own:  # nobody knows how often it is called, and what for
            self._limit(dict.fromkeys(("clip", "skip"), f"{able.kind} calls its closure as it likes"))
            return None

        def within() -> Any:
            result = closure()
            measure(optimizer)
            self.guarded(self._mend)(optimizer)
            return result

        if len(arguments) > 1:
            return (arguments[0], within, *arguments[2:]), named
        return arguments, {**named, "closure": within}

    def after(self, optimizer: Any) -> None:
        if self._stepping is None or self._stepping() is not optimizer:
            return
        self._stepping = None
        self._put_back()

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What goes wrong in it ends all changes, not the script. ``torch.compile`` traces it as if there were nothing in it."""
        import torch

        def called(*arguments: Any) -> Any:
            if self.off or torch.compiler.is_compiling() or os.getpid() != self._pid:
                return None
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                return None
            try:
                return function(*arguments)
            except Exception as error:
                self.off = True
                with contextlib.suppress(Exception):
                    self._put_back()
                with contextlib.suppress(Exception):
                    self._tell({"type": "trouble", "of": "repairs", "error": f"{type(error).__name__}: {error}"})
                print(f"chainrule: this process is not repaired any more: {error!r}", file=sys.stderr)
                return None

        return called

    # --- what holds ---------------------------------------------------------------------------------------------------

    def _take_up(self, steps_done: int) -> None:
        self._read()
        if self._ranks is None:
            self._hold(self._wanted, steps_done)
            return
        self._ranks.at(self._steps)
        if not self._ranks.due:
            if self._steps == APART_STEPS and not self._ranks.met:
                self._limit(dict.fromkeys(("rate", "clip", "skip"), "its ranks have not met in a process group"))
            return
        if self._ranks.first:
            may = self._ranks.heard_all()
            self._ranks.say(self._wanted if may else self._holds)
            if self._ranks.lost:
                self._limit(dict.fromkeys(("rate", "clip", "skip"), TOGETHER))
            elif self._ranks.together is False:
                self._limit(dict.fromkeys(("clip", "skip"), TOGETHER))
            self._hold(self._wanted if may else self._holds, steps_done)
        else:
            found = self._ranks.hear()
            if found is not None:
                self._hold(found, steps_done)

    def _read(self) -> None:
        """Rank 0, when the worker has written anew."""
        if self._ranks is not None and not self._ranks.first:
            return
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return
        stat = (found.st_mtime_ns, found.st_ino)
        if stat == self._stat:
            return
        self._stat = stat
        with open(self._path, encoding="utf-8") as stream:
            self._wanted = json.load(stream)

    def _hold(self, document: dict[str, Any], steps_done: int) -> None:
        if document["version"] == self._holds["version"]:
            return
        self._holds = document
        self._made.clear()
        self._tell({"type": "held", "version": document["version"], "step": steps_done})

    # --- what is done -------------------------------------------------------------------------------------------------

    def _scale_rates(self, optimizer: Any, made: int) -> None:
        holds = self._holds
        at = holds["rewarmed"] + made + 1
        warm = at / holds["rewarm"] if at < holds["rewarm"] else 1.0
        if holds["times"] == 1.0 and not holds["at_least"] and warm == 1.0:
            return
        groups = [group for group in optimizer.param_groups if group.get("lr") is not None]
        lift, given = 1.0, 0.0  # groups that differ go on to do so
        if holds["at_least"]:
            largest = max((float(group["lr"]) for group in groups), default=0.0) * holds["times"]
            if largest <= 0:
                given = holds["at_least"]
            elif largest < holds["at_least"]:
                lift = holds["at_least"] / largest
        for group in groups:
            own = group["lr"]
            used = own * 0 + given * warm if given else own * (holds["times"] * lift * warm)
            group["lr"] = used
            self._rates.append((group, own, used))

    def _mend(self, optimizer: Any) -> None:
        """The gradient of this step: it is clipped, or withheld if it is no number."""
        able = self._seen[optimizer]
        if "skip" in able.limits and "clip" in able.limits:
            return
        if getattr(optimizer, "found_inf", None) is not None:  # of a fused optimizer, which skips by itself
            return
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = _norm([each.grad for each in parameters])
        if self._ranks is not None:
            self._ranks.reply(norm)
            if self._ranks.together is not True:
                return
        clip = self._holds["clip"]
        if not math.isfinite(norm):
            if "skip" not in able.limits and parameters:
                self._withheld = [(each, each.grad) for each in parameters]
                for each in parameters:
                    each.grad = None  # for which optimizers of torch do nothing, moments included
                self._tell_skip()
        elif clip is not None and norm > clip and "clip" not in able.limits and len(self._seen) == 1:
            for each in parameters:
                each.grad.mul_(clip / norm)

    def _tell_skip(self) -> None:
        self._skipped += 1
        if self._skipped in TOLD_SKIPS or self._skipped % 1000 == 0:
            self._tell({"type": "skipped", "count": self._skipped, "step": self._step})

    def _put_back(self) -> None:
        for group, own, used in self._rates:
            if group.get("lr") is used:  # else somebody has set it meanwhile
                group["lr"] = own
        for parameter, gradient in self._withheld:
            if parameter.grad is None:
                parameter.grad = gradient
        self._rates, self._withheld = [], []

    # --- what can be done ---------------------------------------------------------------------------------------------

    def _look_at(self, optimizer: Any) -> None:
        able = self._seen[optimizer] = Abilities(optimizer)
        self._limit(able.limits)
        if len(self._seen) > 1:
            self._limit({"clip": "several optimizers train in one script, each with a norm of its own"})

    def _limit(self, reasons: dict[str, str]) -> None:
        fresh = {what: why for what, why in reasons.items() if what not in self._limits}
        if fresh:
            self._limits |= fresh
            self._tell({"type": "limits", "limits": self._limits})


class Abilities:
    """What can be done to the steps of an optimizer without breaking them. ``limits``: of rate, clip, skip those that cannot, with the reason."""

    def __init__(self, optimizer: Any) -> None:
        self.kind = type(optimizer).__name__
        module = getattr(type(optimizer).step, "__module__", "") or ""
        self.own = module.startswith("torch.optim.") and self.kind != "LBFGS"  # they do nothing without a gradient
        self.limits: dict[str, str] = {}
        if self.kind == "LBFGS":
            searches = "LBFGS calls its closure as often as its line search asks for"
            self.limits = dict.fromkeys(("rate", "clip", "skip"), searches)
        elif not self.own:
            self.limits = {"skip": f"nobody knows what {self.kind} does without a gradient"}
        if all(group.get("lr") is None for group in optimizer.param_groups):
            self.limits.setdefault("rate", f"{self.kind} has no learning rate")
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        if any(hasattr(each, "_local_tensor") for each in parameters):
            parts = "each rank has a part of the gradient only"
            self.limits = {"clip": parts, "skip": parts} | self.limits


class Ranks:
    """The ranks of a script, at the store at which they met. ``together``: whether all have the same gradient, bit for bit; None: not known yet."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.first, self._rank, self._ranks = rank == 0, rank, ranks
        self.due, self.lost = False, False
        self.together: bool | None = None
        self._store: Any = None
        self._now = self._before = self._oldest = 0  # steps at which they hear of each other
        self._norms: dict[int, str] = {}  # what this rank had to say
        self._missed = 0

    @property
    def met(self) -> bool:
        return self._store is not None

    def at(self, step: int) -> None:
        """Before a step of that number. Ranks that have not met do not wait for each other."""
        import torch.distributed as dist

        self.due = not self.lost and (step in EARLY or step % EVERY == 0) and dist.is_initialized()
        if not self.due:
            return
        if self._store is None:
            place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(
                *place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=WAIT_SECONDS)
            )
            self._store = dist.PrefixStore(
                f"chainrule/repairs/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
            )
        self._oldest, self._before, self._now = self._before, self._now, step

    def heard_all(self) -> bool:
        """Rank 0: whether all others were there the last time; they do what it says then."""
        if not self._before:
            return False
        keys = [f"{self._before}/{rank}" for rank in range(1, self._ranks)]
        if not self._store.check(keys):
            self._missed += 1
            self.lost = self._missed >= MISSED
            return False
        self._missed = 0
        same = all(self._store.get(key).decode() == self._norms.get(self._before) for key in keys)
        self.together = same and self.together is not False
        for key in self._old_keys():
            self._store.delete_key(key)
        return True

    def _old_keys(self) -> Iterator[str]:
        if self._oldest:
            yield f"{self._oldest}/holds"
            yield from (f"{self._oldest}/{rank}" for rank in range(1, self._ranks))

    def say(self, document: dict[str, Any]) -> None:
        said = {"holds": document, "together": self.together, "lost": self.lost}
        self._store.set(f"{self._now}/holds", json.dumps(said))
        self._norms = {step: norm for step, norm in self._norms.items() if step >= self._before}
        self._reply("")

    def hear(self) -> dict[str, Any] | None:
        """Other ranks. None: there is no word, and none will be waited for again."""
        key = f"{self._now}/holds"
        try:
            self._store.wait([key], timedelta(seconds=WAIT_SECONDS))
        except Exception:  # torch has several for it; rank 0 misses this one's answers from now on
            self.lost = True
            return None
        said = json.loads(self._store.get(key).decode())
        self.together, self.lost = said["together"], said["lost"]
        self._reply("")
        holds: dict[str, Any] = said["holds"]
        return holds

    def reply(self, norm: float) -> None:
        """Of the gradient in the step that is under way."""
        if self.due:
            self._reply(norm.hex())

    def _reply(self, said: str) -> None:
        self._norms[self._now] = said
        if not self.first:
            self._store.set(f"{self._now}/{self._rank}", said)


def _norm(gradients: list[Any]) -> float:
    """Of all together. Waits for the device."""
    import torch

    if not gradients:
        return 0.0
    found = [gradient.coalesce()._values() if gradient.is_sparse else gradient for gradient in gradients]
    norms = torch._foreach_norm(found)
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).double().square().sum().sqrt())
