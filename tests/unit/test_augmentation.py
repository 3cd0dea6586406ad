"""Random changes of images: the same for a sample wherever it is, and what each of them does to pixels and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from workers.kinds.images import Augmentation
from workers.spec import parse_spec
from workers.tasks import build_task
from workers.tasks.augmentation import NUMBERS, AugmentedImages, augmented, uniform
from workers.tasks.base import Batch

pytestmark = pytest.mark.unit

SIZE = 6


class Ramps:
    """Image i has the value 100 i + column in each of its rows."""

    labels = torch.arange(50)

    def __len__(self) -> int:
        return 50

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        rows = torch.tensor(indices)
        pixels = (100.0 * rows[:, None, None, None] + torch.arange(SIZE)).expand(-1, 1, SIZE, SIZE)
        return {"pixels": pixels.contiguous(), "labels": rows}


def views(indices: Sequence[int], seed: int = 1, **spec: Any) -> tuple[torch.Tensor, torch.Tensor | None, Batch]:
    augmentation = Augmentation(**spec)
    batch = AugmentedImages(Ramps(), augmentation).batch(indices, seed=seed)
    return *augmented(augmentation, batch), batch


def test_numbers_are_uniform_and_independent() -> None:
    found = uniform(7, range(20_000), 3)
    assert found.min() >= 0
    assert found.max() < 1
    for column in found.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 60, "chi-squared of 19 degrees of freedom"
    neighbours = np.corrcoef([*found.T, np.roll(found[:, 0], 1), uniform(8, range(20_000), 1)[:, 0]])
    assert np.abs(neighbours - np.eye(5)).max() < 0.03
    assert len(np.unique(found)) == found.size


@pytest.mark.parametrize(
    "spec",
    [{"horizontal_flip": True, "crop_padding": 2}, {"mixup": 0.4}, {"cutmix": 1.0, "mixup": 0.2, "crop_padding": 1}],
    ids=str,
)
def test_a_sample_is_changed_alike_in_any_batch(spec: dict[str, Any]) -> None:
    """Would catch partners taken from the batch, and numbers drawn from a generator: both depend on the worker's share."""
    whole, own, _ = views(range(50), **spec)
    for part in ([3], [49, 3], list(range(20, 0, -1))):
        pixels, share, _ = views(part, **spec)
        torch.testing.assert_close(pixels, whole[part], rtol=0, atol=0)
        if own is not None:
            assert share is not None
            torch.testing.assert_close(share, own[part], rtol=0, atol=0)
    assert not torch.equal(views(range(50), seed=2, **spec)[0], whole), "another epoch, other pictures"


def test_flips_mirror_half_of_the_images() -> None:
    pixels, _, batch = views(range(50), horizontal_flip=True)
    original = batch["pixels"]
    flipped = (pixels == original.flip(3)).flatten(1).all(1)
    same = (pixels == original).flatten(1).all(1)
    assert (flipped ^ same).all()
    assert 15 < flipped.sum() < 35


def test_crops_shift_and_repeat_the_border() -> None:
    pixels, _, _ = views(range(50), crop_padding=2)
    columns = (pixels[:, 0, 0] - 100 * torch.arange(50)[:, None]).long()
    expected = {tuple(min(max(c + shift, 0), SIZE - 1) for c in range(SIZE)) for shift in range(-2, 3)}
    assert set(map(tuple, columns.tolist())) == expected


def test_mixup_blends_two_images_by_their_share() -> None:
    pixels, own, batch = views(range(50), mixup=1.0)
    assert own is not None
    expected = own[:, None, None, None] * batch["pixels"] + (1 - own)[:, None, None, None] * batch["other_pixels"]
    torch.testing.assert_close(pixels, expected)
    assert 0.3 < own.mean() < 0.7, "Beta(1, 1) is uniform"
    assert views(range(50), mixup=0.05)[1].sub(0.5).abs().mean() > 0.4, "Beta(0.05, 0.05) is nearly 0 or 1"  # type: ignore[union-attr]


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    pixels, own, batch = views(range(50), cutmix=1.0)
    assert own is not None
    distinct = (batch["labels"] != batch["other_labels"]).nonzero().flatten()
    from_self = pixels == batch["pixels"]
    assert torch.equal(from_self | (pixels == batch["other_pixels"]), torch.ones_like(from_self))
    torch.testing.assert_close(from_self[distinct].float().mean(dim=(1, 2, 3)), own[distinct])
    assert len(own.unique()) > 10
    assert "draws" in batch
    assert batch["draws"].shape == (50, NUMBERS)


def test_both_share_the_images() -> None:
    _, own, batch = views(range(50), mixup=1.0, cutmix=1.0)
    assert own is not None
    pixels = own * SIZE * SIZE
    cut = (pixels - pixels.round()).abs() < 1e-4
    assert 15 < cut.sum() < 35
    assert "other_pixels" in batch


def test_the_loss_of_mixed_images_weighs_both_labels() -> None:
    """Compared with cross-entropy against the mixed distribution, which torch computes from class probabilities."""
    task = build_task(
        parse_spec(
            {
                "name": "x",
                "task": {
                    "kind": "image_classification",
                    "data": {"source": "digits"},
                    "augmentation": {"cutmix": 1.0, "mixup": 0.4},
                    "label_smoothing": 0.1,
                },
            }
        ).task,
        0,
    )
    data = task.datasets()
    torch.manual_seed(0)
    network = task.model().eval()
    batch = data.train.batch(range(32), seed=3)
    loss_sum, count = task.loss(network, batch)
    pixels, own = augmented(task._spec.augmentation, batch)  # type: ignore[attr-defined]
    assert own is not None
    labels = torch.nn.functional.one_hot(batch["labels"], 10) * own[:, None]
    labels = labels + torch.nn.functional.one_hot(batch["other_labels"], 10) * (1 - own)[:, None]
    expected = torch.nn.functional.cross_entropy(network(pixels), labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss_sum, expected)
    assert count.item() == pytest.approx(32)
    assert data.evaluation is not None
    assert set(data.evaluation.batch([0], seed=3)) == {"pixels", "labels"}, "evaluation images stay as they are"


@pytest.mark.parametrize("weights", ["balanced", [1.0, 2.0, 0.5, 1, 1, 1, 1, 1, 1, 3.0]], ids=["balanced", "list"])
def test_class_weights(weights: Any) -> None:
    """torch divides by the weights' sum, and so does the loop by the count that the task gives."""
    task = build_task(
        parse_spec(
            {
                "name": "x",
                "task": {
                    "kind": "image_classification",
                    "data": {"source": "digits"},
                    "class_weights": [float(w) for w in weights] if isinstance(weights, list) else weights,
                },
            }
        ).task,
        0,
    )
    train = task.datasets().train
    torch.manual_seed(0)
    network = task.model().eval()
    batch = train.batch(range(40), seed=0)
    loss_sum, count = task.loss(network, batch)
    if weights == "balanced":
        counts = np.bincount(train.labels.numpy())  # type: ignore[attr-defined]
        weights = len(train) / (10 * counts)
    expected = torch.nn.functional.cross_entropy(
        network(batch["pixels"]), batch["labels"], weight=torch.tensor(weights, dtype=torch.float32)
    )
    torch.testing.assert_close(loss_sum / count, expected)
