"""Rows of ranks: packed, thinned, passed on, on disk; what follows from them for the noise of gradients, and of a run that explodes everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.jobfolder import JobFolder
from workers.watch import rank_files, rank_rules, statistics_file
from workers.watch.rank_rows import (
    FIELDS,
    FIRST_ROWS,
    KEPT_ROWS,
    PASSED_ON_BYTES,
    Heard,
    RankLog,
    pack,
    ranks_in,
    record_type,
    step_of,
)
from workers.watch.ranks import checksum
from workers.watch.record import Checksums, Facts, Floats, Ranks, Record, Series

pytestmark = pytest.mark.unit


def row(step: int, ranks: int = 2, checksum: float = 0.0) -> str:
    table = np.array([[1.0 + rank, 8.0, 0.5 * step, checksum] for rank in range(ranks)])
    return pack(step, table)


def log_of(*rows: str) -> RankLog:
    log = RankLog()
    for each in rows:
        log.add(None, step_of(each), 1.0)
        log.add(each, step_of(each) + 1, 1.0)
    return log


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_a_row_says_of_how_many_ranks_it_is(ranks: int) -> None:
    packed = row(7, ranks, checksum=2.0**52)
    assert (ranks_in(packed), step_of(packed)) == (ranks, 7)
    log = log_of(packed)
    assert log.ranks().norms.shape == (1, ranks)
    assert log.checksums().values.tolist() == [[2**52] * ranks]


def test_what_is_not_finite_or_beyond_float32_is_infinite() -> None:
    ranks = log_of(pack(1, np.array([[1e60, 4.0, np.nan, 0.0], [np.nan, 4.0, -np.inf, 0.0]]))).ranks()
    np.testing.assert_array_equal(ranks.norms, [[np.inf, np.nan]])
    np.testing.assert_array_equal(ranks.losses, [[np.nan, -np.inf]])


def test_checksums_are_of_the_steps_that_have_one() -> None:
    log = log_of(row(1), row(2, checksum=5.0), row(3))
    assert log.checksums().steps.tolist() == [2]
    assert log.ranks().steps.tolist() == [1, 2, 3]


def test_another_number_of_ranks_begins_anew() -> None:
    assert log_of(row(1), row(2), row(3, 3), row(4, 3)).ranks().norms.shape == (2, 3)


def test_a_step_that_was_done_again_counts_once() -> None:
    assert log_of(row(1), row(2), row(3), row(2), row(3)).ranks().steps.tolist() == [1, 2, 3]


def test_long_runs_keep_their_first_and_latest_rows() -> None:
    log = log_of(*(row(step) for step in range(1, 3 * KEPT_ROWS)))
    steps = log.ranks().steps
    assert len(steps) <= KEPT_ROWS
    assert steps[:FIRST_ROWS].tolist() == list(range(1, FIRST_ROWS + 1))
    assert np.diff(steps[-KEPT_ROWS // 2 :]).max() == 1
    assert np.diff(steps).min() > 0


@pytest.mark.parametrize("rows", [0, 5, 4000])
def test_another_worker_goes_on_with_it(rows: int) -> None:
    log, other = log_of(*(row(step) for step in range(1, rows + 1))), log_of(row(9999))
    document = json.loads(json.dumps(log.document()))
    other.restore(document)
    steps = other.ranks().steps.tolist()
    assert steps == log.ranks().steps.tolist() or len(steps) == PASSED_ON_BYTES // record_type(2).itemsize
    assert steps[:1] + steps[-1:] == ([1, rows] if rows else [])


def test_what_was_heard_waits_and_comes_with_its_step() -> None:
    log = RankLog()
    for ranks, step in ((2, 4), (3, 7)):
        log.hear(step, Heard(step - 1, torch.ones(ranks, len(FIELDS), dtype=torch.float64)))
    found = log.take()
    assert {at: (step_of(packed), ranks_in(packed)) for at, packed in found.items()} == {4: (3, 2), 7: (6, 3)}
    assert log.take() == {}


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_files_keep_each_step_once_and_the_last_group(tmp_path: Path) -> None:
    writer = rank_files.RankWriter(tmp_path, 1)
    last = writer.append([row(1), row(2), row(2)], after=-1)
    assert writer.append([row(2), row(3), row(4, 3), row(5, 3)], after=last) == 5
    assert rank_files.last_step(tmp_path) == 5
    found = rank_files.read_ranks(tmp_path)
    assert found is not None
    assert (found[0].steps.tolist(), found[0].norms.shape) == ([4, 5], (2, 3))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.rows")) == 3 * (8 + 40) + 2 * (8 + 60)


def test_a_row_that_is_cut_off_does_not_count(tmp_path: Path) -> None:
    rank_files.RankWriter(tmp_path, 1).append([row(1), row(2)], after=-1)
    part = next(tmp_path.glob("*.rows"))
    part.write_bytes(part.read_bytes()[:-3])
    rank_files.RankWriter(tmp_path, 1).append([row(2), row(3)], after=1)
    found = rank_files.read_ranks(tmp_path)
    assert found is not None
    assert found[0].steps.tolist() == [1, 2, 3]


def test_nothing_there(tmp_path: Path) -> None:
    assert (rank_files.last_step(tmp_path), rank_files.read_ranks(tmp_path)) == (-1, None)


def test_a_folder_is_put_back_from_its_statistics(tmp_path: Path) -> None:
    one, other = JobFolder(tmp_path, "one"), JobFolder(tmp_path, "other")
    rank_files.RankWriter(one.ranks_path, 1).append([row(step, checksum=step) for step in range(1, 40)], after=-1)
    statistics_file.write(tmp_path / "statistics.npz", one)
    statistics_file.restore(tmp_path / "statistics.npz", other)
    before, after = rank_files.read_records(one.ranks_path), rank_files.read_records(other.ranks_path)
    assert before is not None
    np.testing.assert_array_equal(before, after)


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64], ids=lambda kind: str(kind)[6:]
)
def test_any_bit_changes_the_checksum(kind: torch.dtype) -> None:
    """Also in a tensor of an odd number of elements, one that begins in the middle of another, and one that lies across."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(-1000, 1000, (31,), generator=generator).to(kind)
    tensors = [whole[1:6], whole[6:13], whole[13:31].view(6, 3).t()]
    weights = torch.tensor([1, 3, 5])
    known = {float(checksum(tensors, weights))}
    raw = whole.view(torch.uint8)
    size = whole.element_size()
    for byte in range(size, raw.numel(), 3):
        for bit in range(8):
            raw[byte] ^= 1 << bit
            found = float(checksum(tensors, weights))
            assert found not in known, (byte, bit)
            assert 1 <= found <= 2**52
            raw[byte] ^= 1 << bit
    assert {float(checksum(tensors, weights))} == known


def test_parameters_that_change_places_change_the_checksum() -> None:
    one, other = torch.rand(8), torch.rand(8)
    weights = torch.tensor([1, 3])
    assert checksum([one, other], weights) != checksum([other, one], weights)


# --- judged -----------------------------------------------------------------------------------------------------------


def ranks_with(norms: Floats) -> Ranks:
    return Ranks(np.arange(1, len(norms) + 1), norms, np.full(norms.shape, 8.0), np.ones(norms.shape))


def test_a_rank_whose_gradient_is_not_finite_is_named_unless_all_explode() -> None:
    steady = np.full((30, 2), 0.7)
    steady[20, 1] = np.nan
    found = rank_rules.not_finite_on_one(ranks_with(steady))
    assert found is not None
    assert (found.code, found.rank, found.step) == ("silent_corruption", 1, 21)
    exploding = np.full((30, 2), 0.7)
    exploding[15:20] = 0.7 * 1e4 ** np.arange(1, 6)[:, None]
    exploding[20] = 1e19, np.inf
    exploding[21:] = np.nan
    assert rank_rules.not_finite_on_one(ranks_with(exploding)) is None


def test_the_noise_of_gradients_is_told_from_time_to_time() -> None:
    """Two ranks of 16 samples, |G|^2 = 1 and tr(S) = 64: of b samples the squared norm is 1 + 64 / b in the mean."""
    log, told, generator = RankLog(), [], np.random.default_rng(0)
    for step in range(1, 1001):
        direction = np.zeros(500)
        direction[0] = 1.0
        own = direction + generator.normal(0, np.sqrt(64 / 500 / 16), (2, 500))
        table = np.column_stack([np.linalg.norm(own, axis=1), np.full((2, 3), [16.0, 1.0, 0.0])])
        log.add(None, step, float(np.linalg.norm(own.mean(axis=0))))
        log.add(pack(step, table), step + 1, float("nan"))
        told += list(log.noise_when_due().values())
    assert len(told) == 19  # every 50 readings, from 100 on
    assert told[-1] == pytest.approx(64, rel=0.1)


def test_where_norms_are_not_measured_a_loss_that_is_not_finite_has_an_owner() -> None:
    norms = np.full((30, 2), 0.7)
    norms[10:] = np.nan
    losses = np.ones((30, 2))
    losses[25, 1], losses[26:] = np.inf, np.nan
    found = rank_rules.not_finite_on_one(
        Ranks(np.arange(1, 31), norms, np.full((30, 2), 8.0), losses),
    )
    assert found is not None
    assert (found.rank, found.step, found.evidence) == (1, 26, {"loss": "inf"})
    losses[20:25] = 1e3 ** np.arange(1, 6)[:, None]
    assert rank_rules.not_finite_on_one(Ranks(np.arange(1, 31), norms, np.full((30, 2), 8.0), losses)) is None


@pytest.mark.parametrize("onset", [40, 61, 100])
def test_a_rank_that_is_worse_since_between_two_checksums_is_named_with_its_step(onset: int) -> None:
    """Parameters are compared rarely, losses at every step."""
    generator = np.random.default_rng(2)
    losses = np.exp(generator.normal(0, 0.2, (125, 2)))
    losses[onset - 1 :, 1] *= 2
    ranks = Ranks(np.arange(1, 126), np.full((125, 2), np.nan), np.full((125, 2), 8.0), losses)
    checksums = Checksums(np.array([20, 100]), np.array([[5, 5], [5, 7]], dtype=np.uint64))
    empty = Series.of((), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, 0)))
    found = rank_rules.drifted(Record(Facts(), empty, ranks=ranks, checksums=checksums))
    assert found is not None
    assert (found.rank, found.evidence["equal_until"]) == (1, 20)
    assert abs(found.step - onset) <= 2


@pytest.mark.parametrize("worse", [1.0, 1.6])
def test_of_two_unequal_ranks_the_one_whose_loss_rose_is_named(worse: float) -> None:
    """Losses differ by the noise of their samples; without harm nobody is named."""
    generator = np.random.default_rng(1)
    losses = np.exp(generator.normal(0, 0.2, (120, 2)))
    losses[60:, 1] *= worse
    ranks = Ranks(np.arange(1, 121), np.ones((120, 2)), np.full((120, 2), 8.0), losses)
    equal = np.arange(1, 121)[:, None] < 61
    checksums = Checksums(np.arange(1, 121), np.where(equal, 5, [[5, 7]]).astype(np.uint64))
    empty = Series.of((), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, 0)))
    found = rank_rules.drifted(Record(Facts(), empty, ranks=ranks, checksums=checksums))
    assert found is not None
    assert (found.code, found.step, found.rank) == ("rank_divergence", 61, 1 if worse > 1 else None)
