"""What repairs achieve: how many sick jobs reach their goal with them, and what they do to jobs that nothing should be done to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.pitfalls import loop, repairing
from benchmarks.pitfalls.case import Case
from workers.repair.acts import Entry
from workers.repair.ladder import ANSWERS, REBUILDS
from workers.spec import Consent

# What is meant only a person knows, or the same happens with any rate, any clipping and from any earlier weights.
UNTOUCHABLE = (
    "label_error",
    "wrong_loss",
    "output_activation",
    "frozen_params",
    "grad_accumulation",
    "class_imbalance",
)
AS_BEFORE = 0.01  # a metric within that share of the plain run's


@dataclass(frozen=True)
class Repaired:
    """A case with one seed, plain and with repairs. Metrics are those of its goal; null where they are not a number."""

    name: str
    seed: int
    expected: str | None
    accepted: tuple[str, ...]
    plain: float | None
    plain_reached: bool
    value: float | None
    reached: bool
    steps: int  # of the job
    extra: int  # that the run had beside them
    left_out: int  # updates that were no number
    codes: tuple[str, ...]  # first alarms, in the order in which they were told
    acts: tuple[dict[str, Any], ...]
    allow: tuple[Consent, ...] = tuple(repairing.LIVE)

    @property
    def answered(self) -> bool:
        """Something that may be done is known for what the case is expected to be called, and it is not made anew whatever is done."""
        live = self.expected in ANSWERS and "live" in self.allow
        rebuilt = any(rung.consent in self.allow for rung in REBUILDS.get(self.expected or "", ()))
        return (live or rebuilt) and not self.made_by_a_layer

    @property
    def made_by_a_layer(self) -> bool:
        """A gradient that is no number at every step."""
        return self.expected == "nonfinite_gradient" and self.left_out > 0.5 * self.steps

    @property
    def mended(self) -> bool:
        return self.reached and not self.plain_reached

    @property
    def harmed(self) -> bool:
        return self.plain_reached and not self.reached

    @property
    def standing(self) -> bool:
        """An act holds at the end."""
        return any(act["state"] in ("trial", "kept") for act in self.acts)

    @property
    def untouchable(self) -> bool:
        return (self.expected in UNTOUCHABLE and not self.answered) or self.made_by_a_layer

    @property
    def as_before(self) -> bool:
        if self.plain is None or self.value is None:
            return self.plain is self.value
        return abs(self.value - self.plain) <= AS_BEFORE * max(abs(self.plain), 1e-12)


def repaired(case: Case, seed: int, allow: Sequence[Consent] = repairing.LIVE) -> Repaired:
    """Without an act, and without an update that was left out, a run is the plain one, bit by bit: that is not made a second time."""
    job = case.build(seed)
    mended = repairing.run(case, seed, allow)
    plain = loop.run(case.build(seed), seed).metrics if mended.touched else mended.metrics
    metric = case.goal.metric
    return Repaired(
        case.name,
        seed,
        case.expected,
        case.accepted,
        _number(plain.get(metric)),
        case.goal.reached(plain),
        _number(mended.metrics.get(metric)),
        case.goal.reached(mended.metrics),
        job.steps,
        mended.steps - job.steps,
        mended.left_out,
        tuple(mended.codes),
        tuple(map(_told, mended.entries)),
        tuple(allow),
    )


def named(asked: tuple[str, int], allow: Sequence[Consent]) -> Repaired:
    """In a process of its own: cases hold functions, which do not travel. (name of the case, seed)"""
    from benchmarks.pitfalls.cases import ALL

    name, seed = asked
    return repaired(next(case for case in ALL if case.name == name), seed, allow)


def _number(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _told(entry: Entry) -> dict[str, Any]:
    names = (
        "number",
        "step",
        "code",
        "rewind",
        "rate",
        "rate_at_least",
        "clip",
        "forgets_moments",
        "instead_of",
        "against",
    )
    told = {name: getattr(entry.act, name) for name in names}
    if entry.act.patches is not None:
        told["plan"] = entry.act.words
    usual = {"rewind": None, "rate": 1.0, "rate_at_least": 0.0, "clip": None, "forgets_moments": False, "against": None}
    return {"state": entry.state, **{name: value for name, value in told.items() if usual.get(name, ...) != value}}


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(runs: Sequence[Repaired]) -> dict[str, Any]:
    sick = [run for run in runs if run.expected is not None and not run.plain_reached]
    healthy = [run for run in runs if run.expected is None]
    answered = [run for run in sick if run.answered]
    untouchable = [run for run in sick if run.untouchable]
    touched = [run for run in runs if run.acts]
    extra = sorted(run.extra / run.steps for run in touched)
    return {
        "sick": len(sick),
        "sick_with_answer": len(answered),
        "healthy": len(healthy),
        "repaired_of_answered": _share(answered, lambda run: run.mended),
        "repaired_of_all_sick": _share(sick, lambda run: run.mended),
        "repaired_by_code": {code: _counted(part) for code, part in _by_code(sick)},
        "honest": _share(untouchable, lambda run: not run.standing),
        "honest_by_code": {code: _share(part, lambda run: not run.standing) for code, part in _by_code(untouchable)},
        "nothing_standing_without_answer": _share(
            [run for run in sick if not run.answered], lambda run: not run.standing or run.mended
        ),
        "healthy_harmed": sorted(run.name for run in healthy if run.harmed),
        "healthy_with_acts": sorted(run.name for run in healthy if run.acts),
        "healthy_with_updates_left_out": sorted(run.name for run in healthy if run.left_out),
        "healthy_within_one_percent": _share(healthy, lambda run: run.as_before),
        "sick_without_acts": sum(not run.acts for run in sick),
        "extra_steps_median": extra[len(extra) // 2] if extra else None,
        "extra_steps_worst": extra[-1] if extra else None,
        "acts_median": sorted(len(run.acts) for run in touched)[len(touched) // 2] if touched else None,
    }


def _by_code(runs: Iterable[Repaired]) -> Iterator[tuple[str, list[Repaired]]]:
    found = list(runs)
    for code in sorted({run.expected or "" for run in found}):
        yield code, [run for run in found if run.expected == code]


def _counted(runs: Sequence[Repaired]) -> str:
    return f"{sum(run.mended for run in runs)} of {len(runs)}"


def _share(runs: Sequence[Repaired], holds: Any) -> float | None:
    return sum(map(holds, runs)) / len(runs) if runs else None


def store(runs: Sequence[Repaired]) -> Path:
    """With every run in which anything was done, and every sick one. The file, of runs with the same consent."""
    path = RESULTS / f"pitfalls_repairs_{'_'.join(runs[0].allow)}.json"
    told = [asdict(run) for run in runs if run.acts or run.left_out or run.expected is not None]
    lines = ",\n".join("  " + json.dumps({name: each[name] for name in each if name != "allow"}) for each in told)
    shown = json.dumps(figures(runs), indent=1)[:-2]
    path.write_text(f'{shown},\n "runs": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return path


def line(run: Repaired) -> str:
    mark = "HARMED" if run.harmed else "mended" if run.mended else "well" if run.reached else "sick"
    acts = " ".join(_short(act) for act in run.acts)
    left_out = f" [{run.left_out} left out]" if run.left_out else ""
    return (
        f"{mark:<6} {run.name} {run.seed}: {run.expected or 'healthy'} {run.plain} -> {run.value} "
        f"({run.steps}+{run.extra}) {','.join(run.codes)}{left_out} {acts}"
    )


def _short(act: dict[str, Any]) -> str:
    said = [f"{act['step']}:{act['code']}"]
    said += [f"back {act['rewind']}"] if "rewind" in act else []
    said += [f"x{act['rate']:.3g}"] if "rate" in act else []
    said += [f">={act['rate_at_least']:.3g}"] if "rate_at_least" in act else []
    said += [f"clip {act['clip']:.3g}"] if "clip" in act else []
    said += [act["plan"]] if "plan" in act else []
    said += [f"against {act['against']}"] if "against" in act else []
    said += ["moments"] if "forgets_moments" in act else []
    return f"<{' '.join(said)} {act['state']}>"
