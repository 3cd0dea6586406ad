"""Proteins on one and on two workers: the same crops, the same curve, the same model; sharded too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.processes import Processes
from tests.distributed.toys import Memory, context_in
from tests.proteins import MODEL, data_set
from workers.membership import Alone, MeetingPoint
from workers.reports import Outcome
from workers.spec import JobSpec, parse_spec
from workers.train import train

pytestmark = pytest.mark.distributed


def train_proteins(
    rank: int, world_size: int, spec: JobSpec, folder: Path, meeting: MeetingPoint = None
) -> tuple[Memory, Outcome]:
    memory = Memory()
    context = context_in(folder, memory, Alone(rank, world_size, store=meeting))
    return memory, train(spec, context)


train_proteins.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


def job(data: dict[str, Any], workers: dict[str, Any]) -> JobSpec:
    return parse_spec(
        {
            "name": "x",
            "task": {"kind": "protein_structure", "data": data, "model": MODEL},
            "training": {"steps": 8, "batch_size": 5, "clip_norm": 1.0},
            "optimizer": {"name": "adam", "learning_rate": 2e-3},
            "workers": workers,
            "evaluation": {"every_steps": 4, "best": "eval/lddt_ca", "mode": "max"},
        }
    )


def test_any_number_of_workers_gives_the_same_curve(processes: Processes, tmp_path: Path) -> None:
    """Shares of a batch of five are ragged; held-out chains have other lengths than crops, so that they are padded differently."""
    data = data_set(tmp_path)
    runs = {}
    cases: dict[str, dict[str, Any]] = {"1": {"count": 1}, "2": {"count": 2}, "fsdp": {"count": 2, "strategy": "fsdp"}}
    for name, workers in cases.items():
        (tmp_path / name).mkdir()
        runs[name] = processes.run(
            workers["count"], tmp_path / name, train_proteins, job(data, workers), tmp_path / name
        )
    ((alone, outcome),) = runs["1"]
    assert len(alone.series("train/loss")) == 8
    for name in ("2", "fsdp"):
        memory, other = runs[name][0]
        for key in ("train/loss", "eval/loss", "eval/lddt_ca", "eval/train_lddt_ca", "eval/baseline_tm_score"):
            np.testing.assert_allclose(
                memory.series(key), alone.series(key), rtol=5e-3, atol=1e-4, err_msg=f"{name} {key}"
            )
        assert len({result.detail["parameters_sha256"] for _, result in runs[name]}) == 1
        assert other.code is outcome.code
