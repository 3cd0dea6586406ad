"""Metrics of a whole set against scikit-learn's, and pictures that can be read."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from workers.sources.problems import BadDataError
from workers.spec import parse_spec
from workers.tasks import build_task, classification, illustrations
from workers.tasks.base import Illustrated, Measured

pytestmark = pytest.mark.unit


def answers(classes: int, samples: int = 200, absent: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    logits = torch.randn(samples, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return classification.answers(logits, labels)


@pytest.mark.parametrize("rounded", [False, True], ids=["", "ties"])
def test_two_classes_are_measured_as_torchmetrics_does(rounded: bool) -> None:
    from torchmetrics.functional.classification import binary_auroc, binary_f1_score

    given = answers(2)
    if rounded:
        given["probabilities"] = given["probabilities"].mul(5).round().div(5)
    truth, scores = given["labels"], given["probabilities"]
    expected = {
        "auroc": binary_auroc(scores[:, 1], truth).item(),
        "f1": binary_f1_score(scores.argmax(1), truth).item(),
    }
    assert classification.measure(given) == pytest.approx(expected, rel=1e-5)


def test_many_classes_are_measured_as_torchmetrics_does() -> None:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_auroc,
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

    given = answers(5)
    truth, scores = given["labels"], given["probabilities"]
    expected = {
        "auroc": multiclass_auroc(scores, truth, 5, average="macro").item(),
        "f1": multiclass_f1_score(scores, truth, 5, average="macro").item(),
    }
    assert classification.measure(given) == pytest.approx(expected, rel=1e-5)
    assert (classification.confusion_matrix(given) == multiclass_confusion_matrix(scores, truth, 5).numpy()).all()
    right, count = classification.sums(given)["accuracy"]
    assert (right / count).item() == pytest.approx(multiclass_accuracy(scores, truth, 5, average="micro").item())


def test_a_class_that_does_not_occur_is_left_out() -> None:
    """torchmetrics would count it as an area of 0, and warn."""
    from sklearn.metrics import roc_auc_score

    given = answers(4, absent=2)
    truth, scores = given["labels"].numpy(), given["probabilities"].numpy()
    expected = np.mean([roc_auc_score(truth == c, scores[:, c]) for c in (0, 1, 3)])
    assert classification.measure(given)["auroc"] == pytest.approx(expected, rel=1e-5)


def test_what_has_no_meaning_is_no_number() -> None:
    one_class = classification.answers(torch.randn(4, 3), torch.ones(4, dtype=torch.int64))
    assert math.isnan(classification.measure(one_class)["auroc"])
    broken = classification.answers(torch.full((4, 3), math.nan), torch.arange(4) % 3)
    assert all(map(math.isnan, classification.measure(broken).values()))


def test_weights_must_be_as_many_as_classes() -> None:
    with pytest.raises(BadDataError, match=r"^task\.class_weights: there are 2 weights for 3 classes"):
        classification.weights_of([1.0, 2.0], np.array([0, 1, 2]), 3)
    assert classification.weights_of("balanced", np.array([0, 0, 0, 2]), 3).tolist() == pytest.approx([4 / 9, 0, 4 / 3])  # type: ignore[union-attr]


def test_the_pictures_of_a_classifier() -> None:
    spec: Any = {"kind": "image_classification", "data": {"source": "digits"}, "model": {"architecture": "mlp"}}
    task = build_task(parse_spec({"name": "x", "task": spec}).task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None
    assert isinstance(task, Measured)
    drawing: Illustrated = task  # type: ignore[assignment]
    network = task.model().eval()
    assert drawing.illustrate(network, torch.device("cpu")) == {}, "nothing was evaluated yet"
    with torch.no_grad():
        given = task.answers(network, evaluation.batch(range(len(evaluation)), seed=0))
    task.measure(given)
    pictures = drawing.illustrate(network, torch.device("cpu"))
    assert sorted(pictures) == ["confusion_matrix.png", "predictions.png"]
    for content in pictures.values():
        image = Image.open(io.BytesIO(content))
        image.load()
        assert min(image.size) > 300
        assert len(set(image.convert("L").getdata())) > 20, "it is not blank"


def test_samples_that_are_shown_say_what_is_wrong() -> None:
    given = answers(3, samples=4)
    names = ("cat", "dog", "a class with a very long name")
    given["probabilities"] = torch.tensor([[0.9, 0.1, 0.0]] * 4)
    given["labels"] = torch.tensor([0, 1, 2, 0])
    captions = [illustrations._caption(given, sample, names) for sample in range(4)]
    assert captions[0] == ("cat, 90%", True)
    assert captions[1] == ("cat, 90%\nis dog", False)
    assert captions[2][0].endswith("…")
    assert illustrations.shown_samples(3) == [0, 1, 2]
    assert len(illustrations.shown_samples(1000)) == illustrations.SHOWN
