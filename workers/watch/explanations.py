"""Findings in words, for people who are new to backpropagation: what is seen and what would be healthy, what it means for the chain rule, what
would be done under which consent, how to tell whether that worked. Four sentences each."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from workers.repair.data_answers import DATA_ANSWERS
from workers.repair.ladder import ANSWERS, REBUILDS
from workers.watch.findings import Finding, Found
from workers.watch.words import Words, special

OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
UNKNOWN = "unknown"
# Evidence that is a part of a whole.
SHARES = frozenset({
    "accuracy", "best_accuracy", "dead_share", "dropout", "taken_share", "r2", "first_accuracy", "left_over", "norm_left",
    "saturated_share", "share", "twin_rows", "undone",
    "weights_gone", "weights_left", "zero_share",
})  # fmt: skip


def finding(found: Found, consequences: Sequence[str] = ()) -> Finding:
    words = special(found.code, found.evidence) or WORDS[found.code]
    values = _Values(found)
    seen, means, worked = (_said(each, values) for each in (words.seen, words.means, words.worked))
    sentences = [seen[:1].upper() + seen[1:], means, _would(found.code, words, values), worked]
    return Finding(
        code=found.code,
        severity=found.severity,
        first_bad_step=found.step,
        layer=found.layer,
        evidence={name: _plain(value) for name, value in found.evidence.items()},
        explanation=" ".join(sentences),
        suggestion=words.act.format_map(values),
        rank=found.rank,
        consequences=tuple(consequences),
    )


def _said(template: str, values: _Values) -> str:
    """Parts in square brackets are left out where something in them was not measured."""

    def part(match: re.Match[str]) -> str:
        names = [name for _, name, _, _ in string.Formatter().parse(match[1]) if name]
        return match[1] if all(values.get(name, UNKNOWN) != UNKNOWN for name in names) else ""

    return OPTIONAL.sub(part, template).format_map(values)


def _would(code: str, words: Words, values: _Values) -> str:
    act = (words.act[0].lower() + words.act[1:].rstrip(".")).format_map(values)
    if words.consent is None:
        return f"Nothing is changed by itself here, only you can decide: {act}."
    known = code in {"live": ANSWERS, "data": DATA_ANSWERS}.get(words.consent, REBUILDS)
    if not known:
        return f"Nothing of it is changed while the job trains; what would help: {act}."
    when = "while the job trains" if words.consent in ("live", "data") else "and the job begins anew"
    return f"With health.mode: repair and health.allow: [{words.consent}] this is done {when}: {act}."


class _Values(dict[str, str]):
    """Evidence as text; what was not measured reads as ``unknown``."""

    def __init__(self, found: Found) -> None:
        super().__init__({name: _text(value, name in SHARES) for name, value in found.evidence.items()})
        self["step"] = "before the first step" if found.step == 0 else f"at step {found.step}"
        self["since"] = self["step"] if found.step == 0 else f"first {self['step']}"
        self["where"] = f"layer {found.layer}" if found.layer else "the model"
        self["rank"] = "one rank" if found.rank is None else f"rank {found.rank}"

    def __missing__(self, key: str) -> str:
        return UNKNOWN


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN and no NumPy."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any, share: bool = False) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: UNKNOWN}[value]
    if share and isinstance(value, float | int) and math.isfinite(value):
        return f"{100 * value:.3g} %"
    if isinstance(value, float):
        return UNKNOWN if math.isnan(value) else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(each)}" for name, each in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


WORDS: dict[str, Words] = {
    "vanishing_gradient": Words(
        "The loss has hardly moved (from {first_loss} to {loss}) while the gradient of the first layers is {ratio} of the last layers', where a "
        "thousandth and more is healthy.",
        "On its way back through the chain rule it is multiplied by a small number at every layer, most of all at {where}, so the early weights "
        "receive nearly nothing and do not learn.",
        "Re-initialise for the activation in use, insert normalisation, use ReLU-like activations, or add residual connections",
        "architecture",
        "It worked when the first layers receive more than a hundredth of the last layers' gradient and the loss falls within 5 % of the run.",
    ),
    "exploding_gradient": Words(
        "The loss rose to {loss} from {first_loss} while the gradient's norm reached {norm}, where {early_median_norm} was usual, {since} and "
        "largest in {where}.",
        "Each layer on the way back multiplies the error by more than one, so that products of many layers grow without limit and the update "
        "throws the weights away.",
        "Clip the gradient's norm (training.clip_norm, 1.0 is common), lower optimizer.learning_rate and go back to the last healthy weights",
        "live",
        "It worked when the norm stays within ten times its median and the loss is back below its start.",
    ),
    "nonfinite_gradient": Words(
        "The loss or a gradient stopped being a finite number {step}[ ({bad_steps} steps so far)][ in {layers} layers], and {where} is the layer "
        "nearest the output that has it; in a healthy run there is none.",
        "The chain rule multiplies NaN into every weight it reaches from there on, and a weight that is NaN never recovers.",
        "Skip the step, go back to the last healthy weights, and look at the samples and at divisions, roots and logarithms in {where}",
        "live",
        "It worked when all norms are finite and the same step does not fail again; if it does, the layer makes it every time.",
    ),
    "nonfinite_data": Words(
        "Inputs or targets hold numbers that are not finite[ (rows {rows})], {since}; a healthy data set has none.",
        "One such number makes the loss of its batch NaN, and by the chain rule the gradient of every weight.",
        "Leave these rows out on all ranks, or mend them in the data",
        "data",
        "It worked when no batch holds such a number and the loss is finite at every step.",
    ),
    "dying_relu": Words(
        "In {where}, {dead_share} of the units give 0 for every sample (healthy: below 85 %), {since}, and the loss does not fall.",
        "The slope of a ReLU is 0 where its input is negative, so a unit that is never positive gets no gradient and stays as it is.",
        "Draw the dead units' incoming weights anew, clear their moments and lower optimizer.learning_rate; or use LeakyReLU",
        "weights",
        "It worked when fewer than half of the units are silent and the loss falls within 5 % of the run.",
    ),
    "saturated_activation": Words(
        "In {where}, {saturated_share} of the outputs lie where the activation is nearly flat (healthy: below 50 %), {since}, and the loss does "
        "not fall.",
        "A flat activation has a slope near 0, and the chain rule multiplies every gradient that passes by this slope.",
        "Normalise the inputs, re-initialise with smaller weights, or use an activation that does not saturate",
        "weights",
        "It worked when fewer than half of the outputs are saturated and the first layers' gradient has grown.",
    ),
    "bad_init": Words(
        "The weights of {where} begin wrongly[; {twin_rows} of their rows are equal (healthy: none)][; deviation: {std}][, {std_over_he} times "
        "He's (healthy: 0.1 to 4)][; first loss: {first_loss}][, where a constant answer has {constant_loss}].",
        "Units with equal weights get equal gradients and stay copies of each other, and weights of a wrong scale shrink or blow up signal and "
        "gradient at every layer.",
        "Re-initialise by He or Xavier for the activation in use",
        "weights",
        "It worked when the first loss is near that of a constant answer and falls from there.",
    ),
    "unnormalised_input": Words(
        "The job fails and a feature of its inputs has a mean or deviation of {largest_feature_scale}, where about 1 is healthy.",
        "The gradient of the first layer is the error times the input, so large features make steep and narrow valleys that one learning rate "
        "cannot follow, and drive activations flat.",
        "Standardise the inputs with mean and deviation of the training split, or fold that into the first layer",
        "architecture",
        "It worked when the first layer's update ratio is like the others' and the loss falls at once.",
    ),
    "lr_too_high": Words(
        "The loss is {loss}[ after {first_loss} at the start], first off {step}[; updates of up to {largest_update_ratio} of the weights in one "
        "step (healthy: about 0.001, at most 0.02 to 0.05)][; updates of {update_ratio} of the weights (healthy: about 0.001)][; the rate had "
        "risen just before: {rate_rose}].",
        "The gradient is a direction that holds for a small step only; a step this long lands on the other side of the valley, higher than before.",
        "Go back to the last healthy weights and lower optimizer.learning_rate to a third or a tenth, with a new warm-up",
        "live",
        "It worked when the loss falls below its start and stays there; if it still rings, lower again.",
    ),
    "oscillating_loss": Words(
        "The loss leaps or has lost what it had: {loss} now[, {best} at best][, {loss_before} before][; its spread is {spread} of its level "
        "(healthy: well below 0.9)][; momentum is {momentum} (0.9 is common)].",
        "Steps overshoot from one side of a valley to the other, or gradients of so few samples point anywhere.",
        "Lower optimizer.learning_rate to a third, or accumulate gradients over more samples",
        "live",
        "It worked when the median loss falls again within 5 % of the run.",
    ),
    "lr_too_low": Words(
        "The loss is {loss} after {first_loss} at the start and the weights change by {update_ratio} of themselves in a step (healthy: 0.00002 to "
        "0.02).",
        "The gradients point the right way, but the steps are so short that the end of the run comes long before the valley's.",
        "Raise optimizer.learning_rate ten-fold up to the first rise of the loss",
        "live",
        "It worked when the loss falls several times as fast without leaping.",
    ),
    "slow_convergence": Words(
        "The loss falls along a straight line and would be {expected_at_the_end} at the end, after {first_loss} at the start; a healthy one bends "
        "well below that.",
        "The gradient still points downhill all the way, so longer steps could be made.",
        "Raise optimizer.learning_rate ten-fold, or use an adaptive optimizer",
        "live",
        "It worked when the loss falls several times as fast without leaping.",
    ),
    "lr_zero": Words(
        "The learning rate is 0 or next to it[ ({learning_rate})], {step}, long before the end of the run[ (share of the run: rate: {schedule})]; a "
        "healthy one is positive until then.",
        "Gradients are computed and then multiplied by nothing: no weight can change.",
        "Mend the schedule (its length, its warm-up, its last value) or set optimizer.learning_rate",
        "live",
        "It worked when the weights change and the loss moves.",
    ),
    "plateau": Words(
        "The loss has stayed at {loss} ({first_loss} at the start)[, nothing has become better for {unchanged_for} steps,] and no other cause was "
        "found; the gradient's norm is {norm} after {early_norm} at the start.",
        "Where all gradients are small at once the surface is flat around: a saddle or a poor minimum that plain descent leaves slowly.",
        "Restart the learning rate with a warm-up, perturb the weights, use smaller batches, or begin from another initialisation",
        "live",
        "It worked when the norm grows and the loss leaves its level within 5 % of the run.",
    ),
    "loss_spike": Words(
        "The loss jumped {step} from {loss_before} to {loss} and has not come back; a healthy one is back after a few steps.",
        "One very large gradient[ (norm {norm_over_usual} times the usual)] moved the weights far, and the optimizer's moments keep pushing that "
        "way.",
        "Go back to the weights before the jump, leave out the batches around it, and clear the moments of {where}",
        "live",
        "It worked when the loss goes on from its level before the jump.",
    ),
    "wrong_loss": Words(
        "The loss {loss} does not fit what it is given: {why}[ (targets from {least_target} to {largest_target})].",
        "The chain rule starts at the loss, so every gradient behind it leads towards a goal that is not meant.",
        "Check the sign of the loss, the shapes and range of outputs and targets, and whether it takes logits or probabilities",
        None,
        "It worked when the loss starts near that of a constant answer and falls without passing its bound.",
    ),
    "output_activation": Words(
        "The output passes {output} before {loss}, which takes it as it comes; in a healthy model the last layer's numbers go there unchanged.",
        "The function squeezes the outputs into a narrow range, so the loss cannot come near its floor, and its slope multiplies every gradient "
        "on the way back.",
        "Remove {output} behind {where}, and apply it for predictions only",
        "architecture",
        "It worked when the loss falls below where it stopped before.",
    ),
    "label_error": Words(
        "The loss is {loss} ({first_loss} at the start[, {constant_loss} for the best constant answer]) with gradients as lively as at the start.",
        "Gradients of different samples point in different directions and cancel: nothing in the inputs tells the targets.",
        "Look at ten samples with their targets: their order, an off-by-one, a shuffle of one without the other",
        None,
        "It worked when the loss falls below that of a constant answer, in training and in validation.",
    ),
    "class_imbalance": Words(
        "The largest class has {ratio} times as many samples as the smallest ({largest} and {smallest}) and no weights (healthy: up to 20 times).",
        "The gradient is a mean over samples, so the rare class hardly counts in it, and a model that never names it has a low loss.",
        "Weight the loss by class, the rarer the more",
        "data",
        "It worked when the recall of the smallest class rises.",
    ),
    "frozen_params": Words(
        "{where}[ ({layers} in all)][ and all others ({layers_without_gradient} layers)] can be trained but do not change ({step}): they are in no "
        "optimizer, or no gradient reaches them; in a healthy model every such layer changes.",
        "Where the graph is cut (detach, no_grad) the chain rule ends, and a gradient without an optimizer changes nothing.",
        "Give these parameters to the optimizer, mend the graph, or set requires_grad to false if it is meant",
        "live",
        "It worked when the layers' update ratio is above 0.",
    ),
    "grad_accumulation": Words(
        "When the passes of step 2 began, {left_over} of the first step's gradient was still there; healthy is none of it.",
        "Backpropagation adds to what it finds, so every step goes by the sum of all gradients since the start, like momentum without end.",
        "Clear the gradients after every optimizer step (optimizer.zero_grad())",
        "live",
        "It worked when nothing is left at the next step and the norm no longer grows with the steps.",
    ),
    "overfitting": Words(
        "Validation loss is {validation_loss}, after {best_validation_loss} at its best, while training loss fell to {training_loss} (healthy: "
        "within 1.3 times the best).",
        "Gradients now only teach the training samples by heart, and what they change no longer holds for others.",
        "Stop and keep the weights that were best; or raise weight decay, drop-out or augmentation",
        "live",
        "It worked when validation loss no longer rises while training loss falls.",
    ),
    "over_regularised": Words(
        "The loss stays at {loss} and weight decay is {weight_decay}[, {rate_times_decay} of every weight in a step][; {weights_left} of the "
        "weights' norm is left (healthy: most of it)].",
        "Decay pulls every weight towards 0 more strongly than the gradient pulls it anywhere.",
        "Lower optimizer.weight_decay ten-fold or more",
        "live",
        "It worked when the weights' norms hold and the loss falls.",
    ),
    "precision_overflow": Words(
        "Numbers went beyond what half precision holds {step} ({bad_steps} steps so far), first in {where}; a loss scaler's own tries are over "
        "after a few steps.",
        "float16 ends at 65,504: an activation or a gradient beyond is infinite, and infinite less infinite is NaN.",
        "Use bfloat16, or float32 for this part, or a loss scaler",
        "live",
        "It worked when no step is skipped any more.",
    ),
    "precision_underflow": Words(
        "Half precision rounds away what is to be learnt[; {zero_share} of the gradient is exactly 0 (healthy: below 20 %)][; weights of {dtype} "
        "are to move by {update_ratio} of themselves, less than the format can hold (healthy: above 0.004 for bfloat16)].",
        "What is smaller than the format's spacing is rounded away, so the product of the chain rule ends as 0 or the update is lost.",
        "Keep weights in float32, and scale the loss where gradients are float16",
        "live",
        "It worked when the weights move and the loss falls.",
    ),
    "silent_corruption": Words(
        "The gradient of {rank} before the all-reduce is off its peers'[, {norm_over_peers} times as large][ (norm {norm})][ (loss {loss})], "
        "{since}; healthy ranks agree within noise.",
        "The all-reduce adds it to everybody's, so one bad device or one bad part of the data moves all weights.",
        "Do the step again; if it is bad again, replace {rank} and go back to the last healthy weights",
        "live",
        "It worked when the ranks' norms agree again.",
    ),
    "rank_divergence": Words(
        "{rank} is off its peers, {since}[; its loss is {loss_over_peers} times theirs][; parameters were equal until step {equal_until}]; healthy "
        "ranks hold equal parameters and see equally hard samples.",
        "All ranks must apply the same sum of gradients to the same weights; otherwise each learns a model of its own and the sum fits none.",
        "Send the weights of a healthy rank to all, look at the part of the data that {rank} reads, or replace its worker",
        "live",
        "It worked when checksums are equal and losses agree again.",
    ),
    "data_starvation": Words(
        "A step waits {wait_seconds} s for its data, {share} of its time (healthy: below 20 %).",
        "Backpropagation is idle meanwhile; the result is the same, only later.",
        "Use more loader workers, a cache, or decoded files",
        None,
        "It worked when the share falls below 20 %.",
    ),
    "batch_size": Words(
        "The batch has {batch} samples, the noise of the gradients says that about {critical_batch} are the best trade (healthy: within a factor "
        "of 30).",
        "Below it the mean over the batch is mostly noise, far above it more samples hardly make the gradient truer.",
        "Change training.batch_size towards it, or accumulate gradients",
        "live",
        "It worked when the same loss is reached in fewer steps, or in less time.",
    ),
}  # fmt: skip
