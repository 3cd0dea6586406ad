"""The protein task as the training loop sees it: crops, masks, gradients, metrics, illustrations, the exported model."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import biotite.structure.io.pdb as pdb
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.proteins import MODEL, atoms, backbone, data_set, write
from workers.export import export_model, load_model
from workers.models.proteins.folding import Folding
from workers.models.proteins.trunk import SharedDropout
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, parse_spec
from workers.tasks import build_task
from workers.tasks.base import Batch, Task
from workers.tasks.protein_structure import predicted
from workers.weights import full_state_dict

pytestmark = pytest.mark.unit


def job(data: dict[str, Any], **model: Any) -> JobSpec:
    task = {"kind": "protein_structure", "data": data, "model": {**MODEL, **model}, "loss": {"unclamped": 0.5}}
    return parse_spec({"name": "x", "task": task, "training": {"batch_size": 4}})


def awake(model: nn.Module) -> nn.Module:
    """Layers that start at zero would hide what their inputs are. The same each time: some draws turn rounding into angles."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return job(data_set(tmp_path))


@pytest.fixture
def task(spec: JobSpec) -> Task:
    torch.manual_seed(0)
    return build_task(spec.task, 0)


def rows(batch: Batch, chosen: list[int], length: int | None = None) -> dict[str, Tensor]:
    """Samples of a batch; those with a residue dimension cut off at ``length``."""
    padded = batch["mask"].shape[1]
    return {
        name: each[chosen][:, :length] if each.ndim > 1 and each.shape[1] == padded else each[chosen]
        for name, each in batch.items()
    }


@pytest.mark.parametrize("triangle_attention", [False, True])
def test_padding_and_neighbours_in_the_batch_change_nothing(tmp_path: Path, triangle_attention: bool) -> None:
    """Two held-out chains of different lengths together are each what they are alone."""
    data = data_set(tmp_path)
    write(tmp_path / "held_out" / "long.pdb", atoms("AV" * 17, backbone("helix", 34)))
    spec = job(data, triangle_attention=triangle_attention)
    task = build_task(spec.task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None
    model = awake(task.model()).eval()
    together = evaluation.batch([0, 1], seed=0)
    assert together["mask"].sum(1).tolist() == [20, 34]
    with torch.no_grad():
        whole, measured = predicted(model, together), task.evaluate(model, together)
        alone = [predicted(model, evaluation.batch([index], seed=0)) for index in (0, 1)]
        parts = [task.evaluate(model, evaluation.batch([index], seed=0)) for index in (0, 1)]
    for row, (each, length) in enumerate(zip(alone, (20, 34), strict=True)):
        for found, expected in (
            (whole.frames.translation, each.frames.translation),
            (whole.frames.rotation, each.frames.rotation),
            (whole.plddt(), each.plddt()),
        ):
            torch.testing.assert_close(found[row, :length], expected[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(whole.distogram[row, :length, :length], each.distogram[0], rtol=1e-3, atol=1e-3)
    for name, (total, _) in measured.items():
        if not name.startswith("train"):
            torch.testing.assert_close(total, sum(part[name][0] for part in parts), rtol=1e-3, atol=1e-3, msg=name)


def test_what_is_masked_has_no_part_in_the_loss(task: Task) -> None:
    train = task.datasets().train
    model = awake(task.model())
    batch = dict(train.batch(range(4), seed=1))
    batch["resolved"] = batch["resolved"].clone()
    batch["resolved"][:, 5] = 0
    batch["bonded"][:, 5:7] = 0
    before = task.loss(model, batch)[0]
    batch["atoms"] = batch["atoms"].clone()
    batch["atoms"][:, 5] = 77.0
    torch.testing.assert_close(task.loss(model, batch)[0], before)


def test_the_loss_is_a_sum_over_chains(task: Task) -> None:
    train = task.datasets().train
    model = awake(task.model())
    batch = train.batch([0, 5, 11, 20], seed=3)
    whole, count = task.loss(model, batch)
    parts = [task.loss(model, rows(batch, chosen))[0] for chosen in ([0, 1, 2], [3])]
    torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-4, atol=1e-4)
    assert count.item() == 4


def test_crops_are_a_function_of_seed_and_index(task: Task) -> None:
    train = task.datasets().train
    assert len(train) == 6 * 4
    first, again = train.batch([3, 9], seed=5), train.batch([9], seed=5)
    for name, value in again.items():
        torch.testing.assert_close(first[name][1:], value, msg=name)
    starts = {int(train.batch([index], seed=seed)["position"][0, 0]) for seed in range(8) for index in (8, 9, 10, 11)}
    assert starts <= set(range(26 - 16 + 1))
    assert len(starts) > 5, "crops of a chain of 26 begin anywhere"
    assert {train.batch([0], seed=seed)["recycles"].shape[1] for seed in range(10)} == {0, 1}
    clamped = torch.cat([train.batch(range(24), seed=seed)["clamped"] for seed in range(8)])
    assert 0.35 < clamped.mean() < 0.65


@pytest.mark.parametrize("recycles", [0, 1])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_weight_has_a_gradient_at_every_step(task: Task, recycles: int, bf16: bool) -> None:
    """Data parallel workers would wait for one that has none. Under autocast, casts made without gradients must not be used again."""
    train = task.datasets().train
    model = awake(task.model())
    batch = {**train.batch(range(4), seed=1), "recycles": torch.zeros(4, recycles)}
    batch["residues"] = torch.randint(0, 20, batch["residues"].shape)  # alike ones would all stand in one place
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, count = task.loss(model, batch)
    assert total.dtype == torch.float32
    (total / count).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum()]  # type: ignore[union-attr]
    allowed = (
        ()
        if recycles
        else (  # what is fed back is zero at first
            "recycle_distance.weight",
            "recycle_single.weight",
            "recycle_pair.weight",
        )
    )
    assert [name for name in still if name not in allowed] == []


def test_recycling_feeds_the_result_back(task: Task) -> None:
    batch = task.datasets().train.batch(range(2), seed=1)
    model = awake(task.model()).eval()
    with torch.no_grad():
        results = [
            predicted(model, {**batch, "recycles": torch.zeros(2, times)}).frames.translation for times in (0, 1, 2)
        ]
    assert (results[0] - results[1]).abs().max() > 1e-3
    assert (results[1] - results[2]).abs().max() > 1e-4


def trained(task: Task, steps: int) -> Folding:
    train, model = task.datasets().train, task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        total, count = task.loss(model, train.batch(range(step % 3, 24, 3), seed=step))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert isinstance(model, Folding)
    return model.eval()


def test_helices_and_strands_are_learnt_and_told(tmp_path: Path) -> None:
    """Alanine is a helix here and valine a strand, also in chains of a length that was not trained on."""
    torch.manual_seed(0)
    spec = job({**data_set(tmp_path), "crop_size": 24})
    task = build_task(spec.task, 0)
    model = trained(task, 100)
    datasets = task.datasets()
    assert datasets.evaluation is not None
    batch = datasets.evaluation.batch(range(len(datasets.evaluation)), seed=0)
    with torch.no_grad():
        sums = task.evaluate(model, batch)
        files = task.illustrate(model, torch.device("cpu"))  # type: ignore[attr-defined]
    found = {name: (total / count).item() for name, (total, count) in sums.items()}
    assert set(found) == set(spec.task.metrics())
    assert [int(sums[name][1]) for name in ("lddt_ca", "train_lddt_ca", "loss")] == [2, 6, 2]
    assert found["train_lddt_ca"] > 0.6
    assert found["lddt_ca"] > 0.6
    assert 0.1 < found["tm_score"] <= 1
    assert found["rmsd"] < 4

    assert set(files) == {"helix20.pdb", "strand20.pdb", "chains.csv", "distance_maps.png", "baselines.json"}
    table = list(csv.DictReader(io.StringIO(files["chains.csv"].decode())))
    assert [row["chain"] for row in table] == ["helix20", "strand20"]
    assert float(table[0]["lddt_ca"]) == pytest.approx(sums["lddt_ca"][0].item() - float(table[1]["lddt_ca"]), abs=1e-2)
    assert float(table[0]["ideal_helix_lddt_ca"]) > 0.99
    assert json.loads(files["baselines.json"])["chains"] == 2
    with Image.open(io.BytesIO(files["distance_maps.png"])) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10

    export_model(tmp_path / "model", full_state_dict(model), task, spec)
    answer = load_model(tmp_path / "model").predict(np.array(["A" * 20, "vvvv"]))
    written = pdb.PDBFile.read(io.StringIO(files["helix20.pdb"].decode()))
    with torch.no_grad():
        expected = predicted(model, datasets.evaluation.batch([0], seed=0))
    structure = written.get_structure(model=1, extra_fields=["b_factor"])
    np.testing.assert_allclose(structure.coord.reshape(20, 4, 3), answer["coordinates"][0], atol=2e-3)
    np.testing.assert_allclose(structure.b_factor[::4], 100 * expected.plddt()[0], atol=0.01)
    np.testing.assert_allclose(answer["plddt"][0], 100 * expected.plddt()[0], rtol=1e-4)
    assert structure.res_name[0] == "ALA"
    assert answer["sequence"].tolist() == ["A" * 20, "VVVV"]
    bonds = np.linalg.norm(structure.coord.reshape(20, 4, 3)[:, 3] - structure.coord.reshape(20, 4, 3)[:, 2], axis=-1)
    np.testing.assert_allclose(bonds, 1.23, atol=0.01)


def test_the_exported_model_is_one_of_mlflow(spec: JobSpec, task: Task, tmp_path: Path) -> None:
    import mlflow
    import pandas

    task.datasets()
    export_model(tmp_path / "model", full_state_dict(task.model()), task, spec)
    found = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pandas.DataFrame({"sequence": ["ACDX", "mkv"]}))
    assert found["sequence"].tolist() == ["ACDX", "MKV"]
    assert found["pdb"][0].startswith("ATOM")
    assert "UNK" in found["pdb"][0]
    assert 0 < found["mean_plddt"][1] < 100


@pytest.mark.parametrize("value", ["", "AC1", 5, "A" * 600, "AÄ"])
def test_sequences_that_are_none_are_refused(spec: JobSpec, task: Task, tmp_path: Path, value: Any) -> None:
    export_model(tmp_path / "model", full_state_dict(task.model()), task, spec)
    with pytest.raises(BadDataError, match="row 1"):
        load_model(tmp_path / "model").predict(np.array(["AA", value], dtype=object))


def test_dropout_leaves_out_whole_rows_in_training_alone() -> None:
    """A mask for each pair by itself would be undone by the pair's neighbours, which say the same."""
    torch.manual_seed(0)
    pair = torch.ones(2, 5, 5, 8)
    dropped = SharedDropout(0.5, 1)
    out = dropped(pair)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(out, out[:, :, :1].expand_as(out))
    assert torch.equal(dropped.eval()(pair), pair)
