"""lDDT, TM-score and RMSD against biotite's, and what trivial predictors reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import biotite.structure as structure
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.proteins import atoms, backbone, write
from workers.models.proteins import baselines, scores
from workers.models.proteins.frames import from_quaternion_update
from workers.sources.structures import Chain, read_chains

pytestmark = pytest.mark.unit


def ca_atoms(points: NDArray[Any]) -> Any:
    array = structure.AtomArray(len(points))
    array.coord, array.res_id = points, np.arange(len(points)) + 1
    array.atom_name[:], array.res_name[:], array.element[:] = "CA", "ALA", "C"
    return array


def pair(residues: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """A compact walk and the same one disturbed, turned and moved."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(1, residues, 3, generator=generator).cumsum(1) * 2.2
    other = true + noise * torch.randn(1, residues, 3, generator=generator)
    motion = from_quaternion_update(torch.tensor([[0.3, -0.7, 0.2, 10.0, -20.0, 30.0]]))
    return motion.apply(other), true


@pytest.mark.parametrize(("residues", "noise", "seed"), [(40, 0.3, 0), (40, 1.5, 1), (25, 6.0, 2), (100, 1.0, 3)])
def test_against_biotite(residues: int, noise: float, seed: int) -> None:
    predicted, true = pair(residues, noise, seed)
    mask = torch.ones(1, residues)
    a, b = true[0].numpy(), predicted[0].numpy()
    each = ca_atoms(a)
    assert scores.lddt(predicted, true, mask).item() == pytest.approx(structure.lddt(each, b), abs=1e-4)
    by_residue, counted = scores.lddt_per_residue(predicted, true, mask)
    assert counted.all()
    np.testing.assert_allclose(by_residue[0], structure.lddt(each, b, aggregation="residue"), atol=1e-4)
    fitted, _ = structure.superimpose(a, b)
    np.testing.assert_allclose(scores.superimpose(predicted, true, mask)[0], fitted, atol=1e-3)
    assert scores.rmsd(predicted, true, mask).item() == pytest.approx(structure.rmsd(a, fitted), abs=1e-4)
    rows = np.arange(residues)
    least = structure.tm_score(each, ca_atoms(fitted), rows, rows)
    assert scores.tm_score(predicted, true, mask).item() >= least - 1e-4, (
        "the best superposition is no worse than this one"
    )


def test_tm_score_of_a_superposition_that_is_exact_in_one_half() -> None:
    """The other half is thrown far away: biotite, given the superposition of the first half, agrees."""
    _, true = pair(60, 0.0, 5)
    predicted = true.clone()
    predicted[:, 30:] += 100
    rows = np.arange(60)
    expected = structure.tm_score(ca_atoms(true[0].numpy()), ca_atoms(predicted[0].numpy()), rows, rows)
    assert expected == pytest.approx(0.5, abs=0.01)
    assert scores.tm_score(predicted, true, torch.ones(1, 60)).item() == pytest.approx(expected, abs=5e-3)


def test_unresolved_residues_and_padding_do_not_count() -> None:
    predicted, true = pair(30, 1.0, 4)
    mask = torch.ones(1, 30)
    mask[:, [3, 17]] = 0
    mask[:, 25:] = 0
    kept = mask[0] > 0
    spoiled = torch.where(mask.unsqueeze(-1) > 0, predicted, torch.full_like(predicted, 1000.0))
    for score in (scores.lddt, scores.rmsd, scores.tm_score):
        alone = score(predicted[:, kept], true[:, kept], torch.ones(1, int(kept.sum())))
        torch.testing.assert_close(score(spoiled, true, mask), alone)


def test_a_mirror_image_keeps_lddt_and_loses_the_rest() -> None:
    _, true = pair(50, 0.0, 6)
    mirrored, mask = true * torch.tensor([1.0, 1.0, -1.0]), torch.ones(1, 50)
    assert scores.lddt(mirrored, true, mask).item() == 1
    assert scores.rmsd(mirrored, true, mask).item() > 2
    assert scores.tm_score(mirrored, true, mask).item() < 0.7


def chain(tmp_path: Path, shape: str, residues: int) -> Chain:
    file = write(tmp_path / f"{shape}{residues}.pdb", atoms("A" * residues, backbone(shape, residues)))
    return read_chains("task.data.path", file, "first")[0]


def test_trivial_predictors(tmp_path: Path) -> None:
    helix, strand = chain(tmp_path, "helix", 30), chain(tmp_path, "strand", 40)
    found = baselines.scores(helix, baselines.mean_distances([strand]))
    assert found["ideal_helix"].lddt_ca > 0.99
    assert found["ideal_helix"].tm_score > 0.95
    assert found["mean_distance"].lddt_ca < 0.5, "distances of strands do not suit a helix"
    own = baselines.scores(strand, baselines.mean_distances([strand]))
    assert own["mean_distance"].lddt_ca > 0.99
    assert own["mean_distance"].rmsd < 0.2, "a strand is a line, whose distances tell it all"
    assert baselines.best(found).tm_score == max(each.tm_score for each in found.values())
