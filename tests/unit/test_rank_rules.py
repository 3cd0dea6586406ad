"""Ranks that are off their peers, on real gradients: two or four parts of each batch, each with its own backward pass."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainings import digits, mlp
from workers.watch.diagnosis import diagnose
from workers.watch.rank_rules import noise_scale
from workers.watch.record import Checksums, Facts, LossFacts, Ranks, Record, Series

pytestmark = pytest.mark.unit

STEPS = 250


@cache
def parallel(
    ranks: int = 2,
    wrong_labels_from: int | None = None,
    flipped_at: int | None = None,
    part: int = 16,
    skew: bool = False,
    seed: int = 0,
) -> Record:
    """Rank 1 is the one that goes wrong. ``skew``: each rank draws from classes of its own more often."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model, data = mlp(2), digits()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1)
    generator = torch.Generator().manual_seed(seed)
    names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    losses, norms, own_norms, own_losses = [], [], [], []
    for step in range(1, STEPS + 1):
        gradients, row_norms, row_losses = [], [], []
        for rank in range(ranks):
            rows = torch.randint(len(data.inputs), (part,), generator=generator)
            if skew:
                mine = torch.nonzero(data.targets % ranks == rank).flatten()
                rows[: part // 2] = mine[torch.randint(len(mine), (part // 2,), generator=generator)]
            targets = data.targets[rows]
            if rank == 1 and wrong_labels_from is not None and step >= wrong_labels_from:
                targets = torch.randint(10, (part,), generator=generator)
            loss = nn.functional.cross_entropy(model(data.inputs[rows]), targets)
            own = torch.autograd.grad(loss, parameters)
            if rank == 1 and step == flipped_at:
                at = int(own[2].abs().argmax())
                own[2].view(torch.int32).view(-1)[at] ^= 1 << 30  # the highest bit of the exponent
            gradients.append(own)
            row_norms.append(torch.stack([g.double().norm() for g in own]).norm().item())
            row_losses.append(loss.item())
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        losses.append(float(np.mean(row_losses)))
        norms.append([
            torch.stack([p.grad.double().norm() for p in module.parameters() if p.grad is not None]).norm().item()
            for module in model if isinstance(module, nn.Linear)
        ])  # fmt: skip
        own_norms.append(row_norms)
        own_losses.append(row_losses)
        optimizer.step()
    steps = np.arange(1, STEPS + 1)
    facts = Facts(
        total_steps=STEPS,
        world_size=ranks,
        batch_size=part * ranks,
        loss=LossFacts("cross_entropy", classes=10, bound=0.0),
    )
    return Record(
        facts,
        Series.of(names, steps, np.array(losses), np.array(norms)),
        ranks=Ranks(steps, np.array(own_norms), np.full((STEPS, ranks), float(part)), np.array(own_losses)),
    )


def checksums(ranks: int, odd: int, since: int) -> Checksums:
    steps = np.arange(25, STEPS + 1, 25)
    values = np.repeat(np.arange(len(steps), dtype=np.uint64)[:, None], ranks, axis=1)
    values[steps >= since, odd] += np.uint64(1 << 40)
    return Checksums(steps, values)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("part", [2, 16])
@pytest.mark.parametrize("skew", [False, True])
def test_healthy_ranks_raise_no_alarm(ranks: int, part: int, skew: bool) -> None:
    """The traps: small noisy parts, and data that differ from rank to rank."""
    record = parallel(ranks, part=part, skew=skew)
    for step in range(10, STEPS + 1, 20):
        found = [each for each in diagnose(record.until(step)).findings if each.severity != "note"]
        assert found == [], f"at step {step}"


def test_a_ragged_last_batch_is_no_alarm() -> None:
    record = parallel()
    samples, norms = record.ranks.samples.copy(), record.ranks.norms.copy()
    samples[20::20, 1], norms[20::20, 1] = 1.0, 50 * norms[20::20, 1]
    ragged = dataclasses.replace(record, ranks=dataclasses.replace(record.ranks, samples=samples, norms=norms))
    assert [each.code for each in diagnose(ragged).findings if each.severity != "note"] == []


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("step", [1, 120])
def test_wrong_labels_on_one_rank_name_it_and_the_step(ranks: int, step: int) -> None:
    found = diagnose(parallel(ranks, wrong_labels_from=step)).findings[0]
    assert found.code in ("rank_divergence", "silent_corruption")
    assert found.rank == 1
    # From the first step on all ranks know nothing: it shows when the others have learnt.
    assert step - 5 <= found.first_bad_step <= step + (110 if step == 1 else 5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_flipped_bit_in_a_gradient_names_rank_and_step(ranks: int) -> None:
    found = diagnose(parallel(ranks, flipped_at=100)).findings[0]
    assert (found.code, found.rank, found.first_bad_step) == ("silent_corruption", 1, 100)
    assert found.severity == "critical"


@pytest.mark.parametrize("ranks", [2, 4])
def test_parameters_that_differ(ranks: int) -> None:
    record = dataclasses.replace(parallel(ranks), checksums=checksums(ranks, odd=1, since=150))
    found = diagnose(record).findings[0]
    assert (found.code, found.first_bad_step) == ("rank_divergence", 150)
    assert found.rank == (1 if ranks > 2 else None), "of two nobody knows which"
    assert diagnose(dataclasses.replace(record, checksums=checksums(ranks, 1, 10_000))).verdict == "healthy"


def test_noise_scale_agrees_with_single_samples() -> None:
    """B_simple of gradients of single samples, averaged over the same steps' batches by brute force: here at fixed weights."""
    torch.manual_seed(0)
    model, data = mlp(2), digits()
    parameters = list(model.parameters())

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(data.inputs[rows]), data.targets[rows])
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]).double()

    singles = torch.stack([gradient(torch.tensor([row])) for row in range(len(data.inputs))])
    mean = singles.mean(0)
    wanted = ((singles - mean).square().sum() / (len(singles) - 1) / mean.square().sum()).item()
    rng = np.random.default_rng(0)
    own, whole = [], []
    for _ in range(600):
        parts = [singles[rng.choice(len(singles), 16)].mean(0) for _ in range(4)]
        own.append([part.norm().item() for part in parts])
        whole.append([torch.stack(parts).mean(0).norm().item()])
    steps = np.arange(1, 601)
    record = Record(
        Facts(),
        Series.of(("all",), steps, np.ones(600), np.array(whole)),
        ranks=Ranks(steps, np.array(own), np.full((600, 4), 16.0)),
    )
    found = noise_scale(record)
    assert found is not None
    assert found.critical_batch == pytest.approx(wanted, rel=0.1)
    assert found.batch == 64
    assert noise_scale(record.until(50)) is None, "single readings are noise"
