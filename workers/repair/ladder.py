"""Which act answers a finding: rungs from gentle to strong, each tried for a while before the next. Pure functions.

The order is that of what people do by hand: go back to before it began, clip at what is usual, a lower rate (Goyal et al. 2017 re-warm it up;
Chowdhery et al. 2022 go back some hundred steps and leave out the batches since). Codes that are not here are reported and not touched: what is
meant, only a person knows (labels, the sign of a loss, detached graphs), or nothing that can be done to a live run mends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.spec import Consent

GOOD_UPDATE = 0.01  # of the weights in a step: the largest that is usual
USUAL_UPDATE = (
    0.01  # of the layer with the largest: where a run has moved by next to nothing, longer ones are the smaller risk
)
LOWEST, HIGHEST = 0.003, 0.3  # times the rate, as a first answer to steps that are too long
LONGEST = 1e4  # times the rate, as a first answer to steps that are too short
DEFAULT_RATE = {"sgd": 1e-2, "rmsprop": 1e-3}  # where a schedule has none; of the adam family 1e-3
REWARM = 0.05  # of the run
CLIP_AT = 2.0  # times the usual norm
MOSTLY = 0.5  # of the steps since it began
# Steps are too short, or too long: an act that turns the one into the other went too far, and one in between is next.
TOO_SHORT = frozenset({"lr_too_low", "slow_convergence", "lr_zero"})
TOO_LONG = frozenset({"lr_too_high", "oscillating_loss", "exploding_gradient", "nonfinite_gradient", "loss_spike"})
# What was meant, or what is broken, only a person knows: once it is the first cause, nothing is changed any more, whatever follows from it.
ONLY_PEOPLE = frozenset({
    "wrong_loss", "output_activation", "label_error", "frozen_params", "grad_accumulation", "nonfinite_data", "silent_corruption",
    "rank_divergence",
})  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """What of the run the rungs depend on."""

    finding: Mapping[str, Any]  # as a document
    step: int
    total: int  # steps of the run
    usual_norm: float | None  # median of the gradient's global norm before it began
    optimizer: str | None
    learning_rate: float | None  # the largest of the job's schedule

    def evidence(self, name: str) -> float | None:
        value = self.finding["evidence"].get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Rung:
    consent: Consent
    back: bool = False  # to the weights before it began
    cheaply: bool = False  # only as far as no more is lost than went wrong: the weights are sound, and the schedule gets its steps back
    rate: float = 1.0
    rate_at_least: float = 0.0
    clip: float | None = None
    decay: float = 1.0
    ends: bool = False
    forgets_moments: bool = False
    rewarm: bool = True
    plan: str | None = None  # begin anew with a model that is changed so (``rebuilding.PLANS``)


def rungs(situation: Situation) -> Sequence[Rung]:
    """Gentle ones first; none where nothing is to be touched, or nothing live helps."""
    code = situation.finding["code"]
    live = ANSWERS[code](situation) if code in ANSWERS else ()
    return [*live, *REBUILDS.get(code, ())]


def said_of(rung: Rung) -> str:
    """For people."""
    said = []
    if rung.plan is not None:
        said.append(f"began anew with a model that is {PLANNED[rung.plan]}")
    if rung.back:
        said.append("went back to the weights from before it began and leaves out the batches since")
    if rung.clip is not None:
        said.append(f"clips the gradient's norm at {rung.clip:.3g}")
    if rung.forgets_moments:
        said.append("cleared the optimizer's moments")
    if rung.decay != 1.0:
        said.append(f"multiplies the weight decay by {rung.decay:.3g}")
    if rung.ends:
        said.append("ended the run with the weights that did best in validation")
    if rung.rate != 1.0:
        said.append(
            f"multiplies the learning rate by {rung.rate:.3g}" + (", with a new warm-up" if rung.rewarm else "")
        )
    if rung.rate_at_least:
        said.append(f"keeps the learning rate at {rung.rate_at_least:.3g} at least")
    return "; ".join(said)


def _shorter(situation: Situation) -> Sequence[Rung]:
    """Steps that are too long: by as much as they were, then a third of that, and again."""
    update = situation.evidence("largest_update_ratio") or situation.evidence("update_ratio")
    first = HIGHEST if update is None else min(HIGHEST, max(LOWEST, GOOD_UPDATE / max(update, 1e-12)))
    clip = _clip(situation)
    factors = [first, first / 3, first / 10, first / 30]
    return [Rung("live", back=True, rate=factor, clip=clip) for factor in factors]


def _calmer(situation: Situation) -> Sequence[Rung]:
    """It leaps about a level: shorter steps, from where it began to, because what the weights are since is by chance, if not ruined."""
    return [Rung("live", back=True, cheaply=True, rate=rate, forgets_moments=True) for rate in (0.3, 0.1, 0.03, 0.01)]


def _bounded(situation: Situation) -> Sequence[Rung]:
    """Gradients that grow: clip, then shorter steps too."""
    clip = _clip(situation) or 1.0
    first = Rung("live", back=True, clip=clip)
    return [first, *(Rung("live", back=True, rate=rate, clip=clip) for rate in (0.3, 0.1, 0.03, 0.01))]


def _finite(situation: Situation) -> Sequence[Rung]:
    """Updates that are no number are left out, so that weights stay sound: something is to be done only when none is left. Where the first gradient
    of all was none, a layer makes it whatever the rate."""
    begun, bad = int(situation.finding["first_bad_step"]), situation.evidence("bad_steps")
    often = bad is None or bad > MOSTLY * (situation.step - begun + 1)
    return _bounded(situation) if begun > 1 and often else ()


def _past_it(situation: Situation) -> Sequence[Rung]:
    """One jump: back, other batches; then without the moments that push on, and shorter steps."""
    clip = _clip(situation)
    return [
        Rung("live", back=True, clip=clip, rewarm=False),
        Rung("live", back=True, clip=clip, rate=0.3, forgets_moments=True),
        Rung("live", back=True, clip=clip, rate=0.1, forgets_moments=True),
    ]


def _longer(situation: Situation) -> Sequence[Rung]:
    """Steps that are too short: as long as usual ones, and longer."""
    if "schedule" in situation.finding["evidence"]:
        return _some_rate(situation)  # it never comes to the rate that it is about
    update = situation.evidence("update_ratio")
    first = 10.0 if not update else min(LONGEST, max(3.0, USUAL_UPDATE / update))
    return [Rung("live", back=True, cheaply=True, rate=first * factor) for factor in (1.0, 3.0, 10.0)]


def _some_rate(situation: Situation) -> Sequence[Rung]:
    """That of the job; where it has none, what is usual, and more of it."""
    known = situation.learning_rate or 0.0
    rate = known if known > 0 else DEFAULT_RATE.get((situation.optimizer or "").lower(), 1e-3)
    factors = (1.0, 0.3, 0.1) if known > 0 else (1.0, 10.0, 0.1)
    return [Rung("live", back=True, cheaply=True, rate_at_least=rate * factor) for factor in factors]


def _shaken(situation: Situation) -> Sequence[Rung]:
    """A flat place without any other cause: a warm restart (Loshchilov & Hutter 2017) with longer steps."""
    return [Rung("live", rate=3.0, forgets_moments=True), Rung("live", rate=10.0, forgets_moments=True)]


def _freer(situation: Situation) -> Sequence[Rung]:
    """Weight decay that takes more than learning gives. What a term of the loss takes, or drop-out, is not known well enough to be changed."""
    if not situation.evidence("weight_decay"):
        return ()
    return [Rung("live", back=True, decay=factor) for factor in (1e-2, 1e-4)]


def _enough(situation: Situation) -> Sequence[Rung]:
    return [Rung("live", ends=True, rewarm=False)]


def _clip(situation: Situation) -> float | None:
    usual = situation.usual_norm
    return CLIP_AT * usual if usual is not None and usual > 0 and math.isfinite(usual) else None


ANSWERS: Mapping[str, Callable[[Situation], Sequence[Rung]]] = {
    "lr_too_high": _shorter,
    "oscillating_loss": _calmer,
    "exploding_gradient": _bounded,
    "nonfinite_gradient": _finite,
    "loss_spike": _past_it,
    "lr_too_low": _longer,
    "slow_convergence": _longer,
    "lr_zero": _some_rate,
    "plateau": _shaken,
    "over_regularised": _freer,
    "overfitting": _enough,
}


# What people do by hand where no live run can be mended, what helps most first, as far as there is consent for it.
PLANNED = {
    "anew": "initialised for the activations in use, layer by layer to outputs of variance 1",
    "normalise": "normalised after every hidden layer",
    "activate": "activated by ReLU, and initialised for it",
    "activate and normalise": "activated by ReLU, and normalised after every hidden layer",
    "leaky": "activated by LeakyReLU, and normalised after every hidden layer",
    "residual": "activated by ReLU, with connections around its layers",
    "inputs": "given standardised inputs",
    "output": "without the activation at its output",
    "keep": "dropping out a tenth where it dropped out most",
}


def _built(*plans: str, rate: float = 1.0) -> list[Rung]:
    consents: Mapping[str, Consent] = {"anew": "weights"}
    return [Rung(consents.get(plan, "architecture"), plan=plan, rate=rate, rewarm=rate < 1) for plan in plans]


REBUILDS: Mapping[str, Sequence[Rung]] = {
    "vanishing_gradient": _built("normalise", "activate and normalise", "residual", "anew"),
    "saturated_activation": _built("normalise", "anew", "activate", "inputs"),
    "dying_relu": _built("leaky", "anew", "normalise", rate=0.3),
    "bad_init": _built("anew", "normalise"),
    "exploding_gradient": _built("normalise", "anew"),
    "plateau": _built("anew"),
    "unnormalised_input": _built("inputs"),
    "output_activation": _built("output"),
    "over_regularised": _built("keep"),
}


def too_far(rate: float, seen: str) -> bool:
    """Whether that change of the rate has turned steps that were too long into too short ones, or the other way round."""
    return (rate < 1 and seen in TOO_SHORT) or (rate > 1 and seen in TOO_LONG)


def halfway(situation: Situation, rate: float) -> Rung:
    """Between no change and one that went too far, on the scale on which rates differ. Steps that were too short have ruined nothing."""
    return Rung("live", back=True, cheaply=rate < 1, rate=math.sqrt(rate), clip=_clip(situation))


def answer(situation: Situation, allowed: Sequence[Consent], tried: int) -> Rung | None:
    """The rung after ``tried`` of those that are allowed; None: there is no further one."""
    found = [rung for rung in rungs(situation) if rung.consent in allowed]
    return found[tried] if tried < len(found) else None


def only_people(situation: Situation, allowed: Sequence[Consent]) -> bool:
    """Whether nothing may be touched any more: the first cause is one that only a person can answer."""
    return situation.finding["code"] in ONLY_PEOPLE and answer(situation, allowed, 0) is None


def rewarm_steps(situation: Situation) -> int:
    return max(5, round(REWARM * situation.total))
