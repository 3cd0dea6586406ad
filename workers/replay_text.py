"""A step that was done again, in words and tables, as a text on backpropagation goes: forward, the loss, backward by the chain rule, the update.

Without torch: the command line shows what another process has found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
FEW = 12  # samples of a rank that are shown


def shown(found: Document) -> str:
    parts = [
        _head(found),
        _samples(found),
        _forward(found),
        _loss(found),
        _backward(found),
        _updates(found),
        _verdict(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(found: Document) -> str:
    begins = f"the checkpoint of step {found['begins']}" if found["begins"] else "the start"
    workers = _counted(found["world_size"], "worker")
    split = f", {found['accumulate']} microbatches each" if found["accumulate"] > 1 else ""
    lines = [
        f"Step {found['step']} (epoch {found['epoch'] + 1}, attempt {found['attempt']}), done again by {workers}{split}, from {begins}."
    ]
    between = found["redone"] - 1
    if between:
        lines.append(f"{_counted(between, 'step')} in between {'was' if between == 1 else 'were'} done again too.")
    lines += [f"As then, {said}." for said in found["repairs"]]
    lines += [f"Passed over: {said}." for said in found["passed_over"]]
    return "\n".join(lines)


def _samples(found: Document) -> str:
    lines = ["SAMPLES"]
    for rank in found["ranks"]:
        names = rank["names"] if rank["names"] is not None else list(map(str, rank["indices"]))
        more = rank["samples"] - len(names[:FEW])
        said = ", ".join(names[:FEW]) + (f" and {more} more" if more else "")
        lines.append(f"  rank {rank['rank']}: {_counted(rank['samples'], 'sample')}: {said}")
    return "\n".join(lines)


def _forward(found: Document) -> str:
    if found["compiled"]:
        return "FORWARD\n  The model was compiled: what its modules give is not seen."
    rows = [
        (
            _name(each),
            each["type"],
            _shape(each["shape"]),
            _figure(each["mean"]),
            _figure(each["deviation"]),
            _share(each["zeros"]),
        )
        for each in found["forward"]
    ]
    head = ("module", "", "gives", "mean", "deviation", "zeros")
    return _table("FORWARD: what each module gives, in the order of its calls", head, rows)


def _loss(found: Document) -> str:
    return f"LOSS\n  {_exact(found['loss'])}, the mean over the step's samples of all workers"


def _backward(found: Document) -> str:
    """dL/dy at each output, then, by the chain rule, dL/dW of its own weights."""
    rows: list[tuple[str, ...]] = []
    for each in found["backward"]:
        first = (_name(each), each["type"], _figure(each["gradient"]))
        own = [
            (parameter["name"].rpartition(".")[2], _figure(parameter["gradient"])) for parameter in each["parameters"]
        ]
        rows.append((*first, *(own[0] if own else ("", ""))))
        rows += [("", "", "", *more) for more in own[1:]]
    head = ("module", "", "|dL/dy| at its output", "parameter", "|dL/dW|")
    return _table("BACKWARD: gradients from the output to the input, by the chain rule", head, rows)


def _updates(found: Document) -> str:
    rows = [
        (each["name"], _shape(each["shape"]), _figure(each["weight"]), _figure(each["update"]), _figure(each["ratio"]))
        for each in found["updates"]
    ]
    clipped = f"; gradients were clipped, times {_figure(found['clipping'])}" if found["clipping"] != 1.0 else ""
    title = f"UPDATE: with a learning rate of {_figure(found['learning_rate'])}{clipped}"
    return _table(title, ("parameter", "shape", "|W| before", "|change|", "change / |W|"), rows)


# --- what was recorded ------------------------------------------------------------------------------------------------


def _verdict(found: Document) -> str:
    compared = found["compared"]
    if compared["same"] is None:
        return "COMPARED\n  Nothing of the step was recorded."
    of_layers = (
        f" and the gradient norms of all {compared['layers']} layers"
        if compared["layers"]
        else "; norms of layers were not recorded of this step"
    )
    if compared["same"]:
        names = ", ".join(name.replace("_", " ") for name in compared["recorded"])
        return f"COMPARED\n  Equal to what was recorded, bit by bit: {names}{of_layers}."
    lines = ["COMPARED", "  Different from what was recorded:"]
    for name in compared["different"]:
        lines.append(
            f"    {name.replace('_', ' ')}: {_exact(found[name])} now, {_exact(compared['recorded'][name])} then"
        )
    if compared["different_layers"]:
        lines.append(
            f"    norms of {len(compared['different_layers'])} of {compared['layers']} layers: {', '.join(compared['different_layers'][:10])}"
        )
    if compared["largest_difference"] is not None:
        lines.append(f"    at most {compared['largest_difference']:.2g} of a value")
    lines.append(f"  {_why(compared)}")
    return "\n".join(lines)


def _why(compared: Document) -> str:
    if not compared["machine_known"]:
        return "On which processor and with which libraries it was trained was not recorded by that version."
    other = compared["other_machine"]
    if not other:
        return "The processor and the libraries are those of the training; its code or its data may have changed since."
    return (
        "Not as in the training: "
        + "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in other.items())
        + "."
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of figures are right-aligned, by their heads."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *(f"  {line}" for line in text)])


def _name(row: Document) -> str:
    return f"{row['module']} (call {row['call'] + 1})" if row["call"] else str(row["module"])


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _figure(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _exact(value: float | str | None) -> str:
    """As many digits as tell it from all others."""
    return "-" if value is None else str(value)


def _counted(count: int, item: str) -> str:
    return f"{count:,} {item}{'' if count == 1 else 's'}"
