"""Pictures of how a classifier does: its confusion matrix, and sample images with what it takes them for.

Drawn with matplotlib's objects; pyplot, which keeps every figure that nobody closes, is not used.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.tasks.base import Dataset, ModelFacts
from workers.tasks.classification import confusion_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_MATRIX = 60  # classes; more cannot be read in a picture
SHOWN = 24  # sample images
NAME_LENGTH = 18
RIGHT, WRONG = "#1a7f37", "#cf222e"


def classification_pictures(answers: Mapping[str, Tensor], data: Dataset, facts: ModelFacts) -> dict[str, bytes]:
    """``answers``: of every sample of ``data``, in order."""
    shown = shown_samples(len(data))
    found = {"predictions.png": predictions_picture(shown, answers, data, facts)}
    if len(facts.class_names) <= LARGEST_MATRIX:
        found["confusion_matrix.png"] = confusion_picture(confusion_matrix(answers), facts.class_names)
    return found


def confusion_picture(counts: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """PNG. Colours are shares of the true class, so that rare classes can be read as well; numbers are counts."""
    size = max(4.5, 1.6 + 0.5 * len(names))
    figure = _figure(size, size)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [shortened(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{int(counts.trace()):,} of {int(counts.sum()):,} right")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def shown_samples(samples: int) -> list[int]:
    """Evenly spread over the set, and the same at every evaluation, so that pictures can be compared."""
    return sorted({int(place) for place in np.linspace(0, samples - 1, min(SHOWN, samples))})


def predictions_picture(shown: Sequence[int], answers: Mapping[str, Tensor], data: Dataset, facts: ModelFacts) -> bytes:
    """PNG. Each image with its predicted class and how sure of it; wrong ones in red, with the true class."""
    pictures = displayed(data.batch(shown, seed=0)["pixels"], facts)
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(1.7 * columns, 2.1 * rows)
    for place, (sample, picture) in enumerate(zip(shown, pictures, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        text, right = _caption(answers, sample, facts.class_names)
        axes.set_title(text, fontsize=7, color=RIGHT if right else WRONG)
        for spine in axes.spines.values():
            spine.set(color=RIGHT if right else WRONG, linewidth=1 if right else 3)
    return _png(figure)


def _caption(answers: Mapping[str, Tensor], sample: int, names: Sequence[str]) -> tuple[str, bool]:
    probabilities = answers["probabilities"][sample]
    predicted, true = int(probabilities.argmax()), int(answers["labels"][sample])
    said = f"{shortened(names[predicted])} {float(probabilities[predicted]):.0%}"
    return (said, True) if predicted == true else (f"{said}\nis {shortened(names[true])}", False)


def displayed(pixels: Tensor, facts: ModelFacts) -> NDArray[Any]:
    """Standardised (N, C, H, W) -> (N, H, W) or (N, H, W, 3) in 0-1."""
    preprocessing: Any = facts.preprocessing
    values = pixels.permute(0, 2, 3, 1).numpy() * preprocessing["deviation"] + preprocessing["mean"]
    clipped: NDArray[Any] = np.clip(values, 0, 1)
    return clipped[..., 0] if clipped.shape[-1] == 1 else clipped


def shortened(name: str) -> str:
    return (name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…").replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure)  # becomes the figure's own
    figure.savefig(content, format="png")
    return content.getvalue()
