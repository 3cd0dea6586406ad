"""What the numbers behind a finding are: a name for people, a unit, and what is healthy. For the page and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    label: str
    unit: str = ""  # after the number; "%": the number is a share
    healthy: str = ""  # nothing where it depends on the job


@dataclass(frozen=True)
class Shown:
    """A line of evidence, as text."""

    label: str
    value: str
    healthy: str


MEASURES = {
    "first_loss": Measure("Loss at the start"),
    "loss": Measure("Loss"),
    "best": Measure("Best loss so far"),
    "peak_loss": Measure("Highest loss"),
    "loss_before": Measure("Loss before"),
    "constant_loss": Measure("Loss of the best constant answer", healthy="the loss falls well below it"),
    "expected_at_the_end": Measure("Loss expected at the end", healthy="well below the start"),
    "training_loss": Measure("Training loss"),
    "validation_loss": Measure("Validation loss", healthy="at most 1.3 times the best"),
    "best_validation_loss": Measure("Best validation loss"),
    "spread": Measure("Spread of the loss over its level", healthy="well below 0.9"),
    "bound": Measure("Bound of the loss", healthy="the loss stays above it"),
    "norm": Measure("Gradient norm"),
    "early_norm": Measure("Gradient norm at the start"),
    "early_median_norm": Measure("Usual gradient norm at the start"),
    "norm_over_usual": Measure("Gradient norm over the usual one", "times", "about 1"),
    "norm_over_peers": Measure("Gradient norm over the other ranks'", "times", "about 1"),
    "loss_over_peers": Measure("Loss over the other ranks'", "times", "about 1"),
    "first_layers_norm": Measure("Gradient norm of the first layers"),
    "last_layers_norm": Measure("Gradient norm of the last layers"),
    "amplification": Measure("Growth of the gradient towards the input", "times"),
    "largest_update_ratio": Measure("Largest update in one step", "of the weights", "about 0.001, at most 0.05"),
    "update_ratio": Measure("Update in one step", "of the weights", "0.00002 to 0.02"),
    "learning_rate": Measure("Learning rate", healthy="above 0 until the end"),
    "moved_at_most": Measure("All steps together, at most", "of the weights", "far more than 0.05"),
    "dropout": Measure("Units left out in a step", "%", "at most 50 %"),
    "dead_share": Measure("Units that give 0 for every sample", "%", "below 85 %"),
    "saturated_share": Measure("Outputs where the activation is flat", "%", "below 50 %"),
    "zero_share": Measure("Gradient elements that are exactly 0", "%", "below 20 %"),
    "twin_rows": Measure("Units with equal weights", "%", "0 %"),
    "std_over_he": Measure("Deviation of the weights over He's", "times", "0.1 to 4"),
    "largest_feature_scale": Measure("Largest mean or deviation of a feature", healthy="about 1"),
    "weight_decay": Measure("Weight decay"),
    "rate_times_decay": Measure("Decay of the weights in a step", "of the weights", "below 0.01"),
    "weights_left": Measure("Norm of the weights that is left", "%", "most of it"),
    "left_over": Measure("Gradient left over from the step before", "%", "0 %"),
    "bad_steps": Measure("Steps that were not finite", "steps", "0"),
    "layers": Measure("Layers concerned", "layers"),
    "layers_without_gradient": Measure("Layers without a gradient", "layers", "0"),
    "nonfinite_inputs": Measure("Inputs that are not finite", "elements", "0"),
    "rows": Measure("Rows"),
    "unchanged_for": Measure("Nothing became better for", "steps"),
    "weights_gone": Measure("Layers whose weights are gone", "%", "0 %"),
    "others": Measure("Samples that each is told from", healthy="dozens"),
    "first_accuracy": Measure("Accuracy at the first check", "%"),
    "strays": Measure("Parameters that the model does not have", healthy="0"),
    "momentum": Measure("Momentum", healthy="0.9 is common"),
    "positions": Measure("Positions that a recurrent layer reads"),
    "easy_since": Measure("Batches are trivial"),
    "r2": Measure("Explained variance on validation samples", healthy="well above 0"),
    "accuracy": Measure("Accuracy on validation samples", "%", "well above the share of the largest class"),
    "share": Measure("Part of the step that waits for data", "%", "below 20 %"),
    "wait_seconds": Measure("Wait for data in a step", "s"),
    "batch": Measure("Batch size", "samples"),
    "critical_batch": Measure("Batch size that the noise suggests", "samples", "within a factor of 30"),
    "equal_until": Measure("Parameters equal on all ranks until step"),
    "ranks": Measure("Ranks", "ranks"),
    "largest": Measure("Largest"),
    "smallest": Measure("Smallest"),
    "dtype": Measure("Format of the weights"),
    "precision": Measure("Precision"),
    "output": Measure("Function on the output"),
    "why": Measure("Why"),
}
OF_CODE = {  # where a name means something of its own
    ("vanishing_gradient", "ratio"): Measure("First layers' gradient over the last layers'", "", "above 0.001"),
    ("class_imbalance", "ratio"): Measure("Largest class over the smallest", "times", "up to 20 times"),
    ("class_imbalance", "largest"): Measure("Samples of the largest class"),
    ("class_imbalance", "smallest"): Measure("Samples of the smallest class"),
    ("lr_zero", "largest"): Measure("Largest learning rate so far"),
    ("wrong_loss", "loss"): Measure("Loss function, or loss"),
    ("output_activation", "loss"): Measure("Loss function"),
}


def shown(finding: Mapping[str, Any]) -> list[Shown]:
    """Of a finding's document; what has no name here is shown under its own."""
    return [_shown(finding["code"], name, value) for name, value in finding.get("evidence", {}).items()]


def _shown(code: str, name: str, value: Any) -> Shown:
    measure = OF_CODE.get((code, name)) or MEASURES.get(name) or Measure(name.replace("_", " ").capitalize())
    if measure.unit == "%" and _is_number(value):
        return Shown(measure.label, f"{100 * value:.3g} %", measure.healthy)
    unit = measure.unit if _is_number(value) else ""
    return Shown(measure.label, f"{text(value)} {unit}".strip(), measure.healthy)


def text(value: Any) -> str:
    """As people read it: three digits, yes and no, lists with commas."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "not known"
        case float():
            return f"{value:.3g}"
        case Mapping():
            return ", ".join(f"{name}: {text(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(map(text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def title(code: str) -> str:
    """A code in words."""
    return code.replace("_", " ").replace("lr ", "learning rate ")


def first_sentence(said: str) -> str:
    """Explanations are a paragraph; a headline has room for a sentence. Points within numbers and names have no space behind them."""
    head, point, _ = said.partition(". ")
    return head + "." if point else said


def cost(watching: Mapping[str, Any]) -> str:
    """What the watching of a job costs, as ``GET .../health`` has it, in words."""
    probes, share, budget = watching["probes"], watching["share"], watching["budget"]
    if not probes:
        none = "gradients.overhead_budget of this job is 0: no step is looked at closely."
        return none if budget == 0 else "What the watching costs has not been measured yet."
    measured = f"{100 * share:.2g} % of the steps' time" if isinstance(share, float) else "a time that is not known yet"
    allowed = f" (gradients.overhead_budget: {100 * budget:.3g} %)" if budget is not None else ""
    closely = f"{probes:,} step was" if probes == 1 else f"{probes:,} steps were"
    return f"Watching has cost {measured} so far{allowed}; {closely} looked at closely."
