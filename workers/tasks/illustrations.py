"""Pictures of how a classifier does: its confusion matrix, and sample images with what it takes them for.

Drawn with Pillow, in milliseconds: a short job evaluates often, and all its workers wait. (matplotlib takes a second for the same.)
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.tasks.base import Dataset, ModelFacts
from workers.tasks.classification import confusion_matrix

if TYPE_CHECKING:
    from PIL import Image

LARGEST_MATRIX = 60  # classes; more cannot be read in a picture
SHOWN = 24  # sample images
NAME_LENGTH = 18
CELL, PICTURE = (160, 188), 136  # pixels: width and height of a sample with its caption, and of its image
HEADER = 44  # pixels
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
    from PIL import Image, ImageDraw, ImageFont

    labels, font = [shortened(name) for name in names], ImageFont.load_default(13)
    left = 24 + max(math.ceil(font.getlength(label)) for label in labels)
    top = left + HEADER
    cell = 28 + max(math.ceil(font.getlength(f"{count:,}")) for count in (int(counts.max()), 100))
    side = cell * len(names) + 16
    sheet = Image.new("RGB", (max(left + side, 320), top + side), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{int(counts.trace()):,} of {int(counts.sum()):,} right"
    draw.text((12, 8), f"{title}\neach row: a true class; its columns: predicted as", fill="black", font=font)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            corner, share = (left + column * cell, top + row * cell), float(shares[row, column])
            draw.rectangle((*corner, corner[0] + cell - 2, corner[1] + cell - 2), fill=_shade(share))
            if count:
                middle, colour = (corner[0] + cell / 2, corner[1] + cell / 2), "white" if share > 0.5 else "black"
                draw.text(middle, f"{count:,}", fill=colour, font=font, anchor="mm")
    for place, label in enumerate(labels):
        offset = place * cell + cell // 2
        draw.text((left - 10, top + offset), label, fill="black", font=font, anchor="rm")
        sheet.paste(_upright(label, font), (left + offset - 9, top - 10 - math.ceil(font.getlength(label))))
    return _png(sheet)


def _shade(share: float) -> tuple[int, int, int]:
    """From nearly white to dark blue."""
    light, dark = (238, 243, 250), (8, 60, 125)
    return tuple(round(a + (b - a) * share) for a, b in zip(light, dark, strict=True))  # type: ignore[return-value]


def _upright(text: str, font: Any) -> Image.Image:
    """Reads from below to above."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (math.ceil(font.getlength(text)), 18), "white")
    ImageDraw.Draw(strip).text((0, 9), text, fill="black", font=font, anchor="lm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def shown_samples(samples: int) -> list[int]:
    """Evenly spread over the set, and the same at every evaluation, so that pictures can be compared."""
    return sorted({int(place) for place in np.linspace(0, samples - 1, min(SHOWN, samples))})


def predictions_picture(shown: Sequence[int], answers: Mapping[str, Tensor], data: Dataset, facts: ModelFacts) -> bytes:
    """PNG. Each image with its predicted class and how sure of it; wrong ones in a red frame, with the true class."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(6, len(shown))
    sheet = Image.new("RGB", (columns * CELL[0], -(-len(shown) // columns) * CELL[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pixels = (displayed(data.batch(shown, seed=0)["pixels"], facts) * 255).round().astype(np.uint8)
    for place, (sample, values) in enumerate(zip(shown, pixels, strict=True)):
        left, top = place % columns * CELL[0], place // columns * CELL[1]
        text, right = _caption(answers, sample, facts.class_names)
        draw.rectangle((left + 8, top + 6, left + 15 + PICTURE, top + 13 + PICTURE), fill=RIGHT if right else WRONG)
        frame = 1 if right else 4
        size = PICTURE + 8 - 2 * frame
        picture = Image.fromarray(values).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + 8 + frame, top + 6 + frame))
        draw.text((left + 8, top + 18 + PICTURE), text, fill=RIGHT if right else WRONG, font=font)
    return _png(sheet)


def _caption(answers: Mapping[str, Tensor], sample: int, names: Sequence[str]) -> tuple[str, bool]:
    probabilities = answers["probabilities"][sample]
    predicted, true = int(probabilities.argmax()), int(answers["labels"][sample])
    said = f"{shortened(names[predicted])}, {float(probabilities[predicted]):.0%}"
    return (said, True) if predicted == true else (f"{said}\nis {shortened(names[true])}", False)


def displayed(pixels: Tensor, facts: ModelFacts) -> NDArray[Any]:
    """Standardised (N, C, H, W) -> (N, H, W) or (N, H, W, 3) in 0-1."""
    preprocessing: Any = facts.preprocessing
    values = pixels.permute(0, 2, 3, 1).numpy() * preprocessing["deviation"] + preprocessing["mean"]
    clipped: NDArray[Any] = np.clip(values, 0, 1)
    if facts.input_shape[0] == 1:  # though a network for colours may be given three
        return clipped[..., 0]
    return clipped


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()
