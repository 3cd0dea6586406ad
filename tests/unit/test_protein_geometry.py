"""Frames, invariant point attention and the losses: invariance under rotation and translation, and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.proteins import backbone
from workers.models.proteins import frames as rigid
from workers.models.proteins import losses
from workers.models.proteins.frames import Frames
from workers.models.proteins.structure_module import InvariantPointAttention

pytestmark = pytest.mark.unit

ONE = torch.ones(1)


def some_frames(*shape: int, seed: int = 0) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    return rigid.from_quaternion_update(3 * torch.randn(*shape, 6, generator=generator))


def true_shape(shape: str, residues: int) -> Tensor:
    return torch.from_numpy(backbone(shape, residues)).unsqueeze(0)


def test_a_frame_from_three_points_by_hand() -> None:
    """Algorithm 21: CA is the origin, C on the x axis, N in the xy plane."""
    ca, c, n = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 3.0]), torch.tensor([2.0, 1.0, 0.5])
    found = rigid.from_three_points(n, ca, c)
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # columns: x is z of the world, y is x, z is y
    torch.testing.assert_close(found.rotation, expected)
    torch.testing.assert_close(found.translation, ca)
    torch.testing.assert_close(found.inverse_apply(torch.stack([c, n])), torch.tensor([[2.0, 0, 0], [-0.5, 1, 0]]))


def test_frames_compose_and_invert() -> None:
    first, second = some_frames(5, seed=1), some_frames(5, seed=2)
    points = torch.randn(5, 4, 3)
    torch.testing.assert_close(first.compose(second).apply(points), first.apply(second.apply(points)))
    torch.testing.assert_close(first.inverse_apply(first.apply(points)), points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.rotation @ first.rotation.mT, torch.eye(3).expand(5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(first.rotation), torch.ones(5))


def test_a_backbone_update_by_hand() -> None:
    """Algorithm 23: (1, 0, 0, 1) / sqrt 2 is a quarter turn about z; nothing is the identity."""
    update = rigid.from_quaternion_update(torch.tensor([[0.0, 0, 1, 5, 6, 7], [0.0] * 6]))
    turned = update.apply(torch.tensor([[[1.0, 0, 0]], [[1.0, 0, 0]]]))
    torch.testing.assert_close(turned, torch.tensor([[[5.0, 7, 7]], [[1.0, 0, 0]]]))


def test_frames_of_ideal_residues_are_found_again() -> None:
    frames = some_frames(2, 7)
    found = rigid.from_three_points(*rigid.backbone(frames).unbind(-2))
    torch.testing.assert_close(found.rotation, frames.rotation, rtol=1e-4, atol=1e-4)


def test_the_pseudo_beta_stands_tetrahedrally_on_the_left() -> None:
    n, ca, c = (torch.tensor(atom) for atom in rigid.IDEAL_BACKBONE)
    beta = rigid.pseudo_beta(n, ca, c)
    assert abs((beta - ca).norm().item() - 1.53) < 0.02
    for other in (n, c):
        cosine = torch.nn.functional.cosine_similarity(beta - ca, other - ca, dim=0)
        assert abs(math.degrees(math.acos(cosine)) - 110) < 3
    assert torch.linalg.cross(n - ca, c - ca).dot(beta - ca) > 0, "L amino acids"


def fape(frames: Frames, points: Tensor, true: Frames, true_points: Tensor, clamped: Tensor = ONE) -> float:
    mask = torch.ones(points.shape[:2])
    return losses.frame_aligned_point_error(frames, points, true, true_points, mask, clamped).item()


@pytest.mark.parametrize(
    ("moved", "clamped", "expected"), [(0.0, 1, 0.0), (5.0, 1, 0.25), (30.0, 1, 0.5), (30.0, 0, 1.5)]
)
def test_fape_by_hand(moved: float, clamped: float, expected: float) -> None:
    """Two residues whose frames are right; the second point is off by ``moved``: both frames see 0 and ``moved``, in units of 10 Å."""
    frames, true_points = rigid.identity((1, 2), torch.device("cpu")), torch.zeros(1, 2, 3)
    points = torch.tensor([[[0.0, 0, 0], [moved, 0, 0]]])
    assert fape(frames, points, frames, true_points, torch.tensor([clamped])) == pytest.approx(expected, abs=1e-3)


def test_fape_of_a_turned_frame_by_hand() -> None:
    """Points right, one of two frames turned half round z: it sees the point that is 3 Å away on the other side, 6 Å off."""
    true = rigid.identity((1, 2), torch.device("cpu"))
    points = torch.tensor([[[0.0, 0, 0], [3.0, 0, 0]]])
    half = torch.tensor([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])
    frames = Frames(torch.stack([half, torch.eye(3)]).unsqueeze(0), true.translation)
    assert fape(frames, points, true, points) == pytest.approx(6 / 4 / 10, abs=1e-3)


def test_fape_does_not_change_when_everything_moves() -> None:
    predicted, true = some_frames(1, 9, seed=1), some_frames(1, 9, seed=2)
    before = fape(predicted, predicted.translation, true, true.translation)
    motion = some_frames(1, 1, seed=3)
    moved = motion.compose(predicted)
    assert fape(moved, moved.translation, true, true.translation) == pytest.approx(before, rel=1e-4)
    assert before > 0.1


def test_fape_sees_a_mirror_image() -> None:
    """Distances alone would not."""
    atoms = true_shape("helix", 12)
    mirrored = atoms * torch.tensor([1.0, 1.0, -1.0])
    true, other = (rigid.from_three_points(*each.unbind(-2)) for each in (atoms, mirrored))
    assert fape(true, true.translation, true, true.translation) < 2e-3
    assert fape(other, other.translation, true, true.translation) > 0.1


def test_fape_ignores_what_is_not_resolved() -> None:
    predicted, true = some_frames(1, 4, seed=1), some_frames(1, 4, seed=2)
    mask = torch.tensor([[1.0, 1, 0, 1]])
    kept = [0, 1, 3]
    whole = losses.frame_aligned_point_error(predicted, predicted.translation, true, true.translation, mask, ONE)
    a, b = (Frames(each.rotation[:, kept], each.translation[:, kept]) for each in (predicted, true))
    assert whole.item() == pytest.approx(fape(a, a.translation, b, b.translation), rel=1e-5)


def test_invariant_point_attention_does_not_see_where_the_chain_is() -> None:
    torch.manual_seed(0)
    attention = InvariantPointAttention(16, 8, heads=3)
    torch.nn.init.normal_(attention.output.weight)  # zero in a new model
    single, pair = torch.randn(2, 6, 16), torch.randn(2, 6, 6, 8)
    bias = attention.pair_bias(pair, torch.ones(2, 6))
    frames = some_frames(2, 6)
    moved = some_frames(1, 1, seed=9).compose(frames)
    result = attention(single, pair, bias, frames)
    torch.testing.assert_close(attention(single, pair, bias, moved), result, rtol=1e-3, atol=1e-3)
    other = attention(single, pair, bias, some_frames(2, 6, seed=5))
    assert (other - result).abs().max() > 0.1, "but it does see how residues stand to each other"


def test_peptide_geometry_costs_only_what_is_out_of_range() -> None:
    atoms = torch.zeros(1, 2, 3, 3)
    # CA-C along x; N' off C so that CA-C-N is 116.6 degrees; the next CA off N' so that C-N-CA is 121.4 degrees.
    atoms[0, 0, 1], atoms[0, 0, 2] = torch.tensor([-1.526, 0, 0]), torch.zeros(3)
    bend, turn = math.pi - math.acos(-0.4473), math.pi - math.acos(-0.5203)
    onwards = torch.tensor([math.cos(bend), math.sin(bend), 0])
    atoms[0, 1, 0] = 1.329 * onwards
    after = torch.tensor([math.cos(bend - turn), math.sin(bend - turn), 0])
    atoms[0, 1, 1] = atoms[0, 1, 0] + 1.458 * after
    bonded = torch.tensor([[0.0, 1.0]])
    assert losses.peptide_geometry(atoms, bonded).item() < 1e-3
    stretched = atoms.clone()
    stretched[0, 1] += 2 * onwards
    expected = 3.329 - 1.329 - 12 * 0.014  # angles stay
    assert losses.peptide_geometry(stretched, bonded).item() == pytest.approx(expected, abs=0.02)
    assert losses.peptide_geometry(stretched, torch.zeros(1, 2)).item() == 0, "a chain break has no bond"


def test_the_distogram_loss_is_least_for_the_right_bins() -> None:
    beta = true_shape("helix", 10)[:, :, 1]
    edges = torch.linspace(2.3125, 21.6875, 63)
    bins = torch.bucketize(torch.cdist(beta, beta), edges)
    right = 20 * torch.nn.functional.one_hot(bins, 64).float()
    mask = torch.ones(1, 10)
    assert losses.distogram(right, beta, mask).item() < 1e-6
    assert losses.distogram(torch.zeros(1, 10, 10, 64), beta, mask).item() == pytest.approx(math.log(64))
