"""Every job file of ``examples/`` runs to success through the API. Long ones are cut to their first steps; what they reach is in RESULTS.md."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.product import Product, wait_until_nothing_is_left
from workers.jobfile import read_job_file
from workers.spec import parse_spec, read_from

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Example:
    """How a file of ``examples/`` is run here."""

    steps: int | None = None  # None: as long as it says
    make: Callable[[Path], None] | None = None  # makes what it reads, beside its copy
    shared: Mapping[str, str] = field(default_factory=dict)  # or: path in the file -> path in the folder of shared data


def pictures(folder: Path) -> None:
    """Two classes of 40 noisy pictures, dark and bright."""
    rng = np.random.default_rng(0)
    for name, middle in (("dark", 60), ("bright", 190)):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.normal(middle, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{index}.png")


def first_job(folder: Path) -> None:
    """The model of an earlier job, of two steps, and questions with their answers."""
    document: Any = read_job_file(EXAMPLES / "language.yaml")
    document["workers"] = {"count": 1}
    document["training"] = {"steps": 2, "batch_size": 4}
    document = read_from(str(EXAMPLES), document, parse_spec(document))
    (folder / "first.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "workers.train", str(folder / "first.json"), "--output", str(folder / "first")]
    subprocess.run(command, check=True, cwd=EXAMPLES.parent, stdout=subprocess.DEVNULL)
    (folder / "first" / "model").rename(folder / "language-model")
    rows = [{"prompt": f"How many are {n} and 1?\n", "completion": f"{n + 1}."} for n in range(20)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


RUNS: Mapping[str, Example] = {
    "breast-cancer.yaml": Example(),
    "custom/job.yaml": Example(),
    "digits.yaml": Example(steps=46),
    "fashion-mnist.yaml": Example(steps=12, shared={"fashion-mnist.npz": "fashion-mnist/fashion-mnist-12k-2k.npz"}),
    "language.yaml": Example(steps=12),
    "lora.yaml": Example(steps=4, make=first_job),
    "pneumonia.yaml": Example(steps=4, shared={"pneumoniamnist-balanced.npz": "medical/pneumoniamnist-balanced.npz"}),
    "proteins.yaml": Example(steps=2, shared={name: name for name in ("proteins/train", "proteins/train.csv")}),
    "resnet-images.yaml": Example(steps=3, make=pictures),
    "script/job.yaml": Example(),
    "tinyshakespeare.yaml": Example(steps=4, shared={"input.txt": "tinyshakespeare/input.txt"}),
}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("examples") / "home")
    try:
        product.wait_until_ready()
        yield product
    finally:
        product.end()
        wait_until_nothing_is_left(product.home)


def test_every_example_is_run_here() -> None:
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
    assert files == set(RUNS)


def runs() -> Iterator[Any]:
    for name, example in RUNS.items():
        yield pytest.param(name, marks=[pytest.mark.shared_data] if example.shared else [], id=name)


@pytest.mark.parametrize("name", runs())
def test_it_succeeds(product: Product, tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    example = RUNS[name]
    document: Any = read_job_file(EXAMPLES / name)
    place = EXAMPLES / Path(name).parent
    if example.make is not None:
        place = tmp_path
        example.make(place)
    document = read_from(str(place), document, parse_spec(document))
    if example.shared:
        shared = request.getfixturevalue("shared_data")
        document = replaced(document, {str(place / old): str(shared / new) for old, new in example.shared.items()})
    if example.steps is not None:
        document["training"] = {**document["training"], "steps": example.steps}
        document["training"].pop("epochs", None)
    answer = product.http.post("/v1/jobs", json=document)
    assert answer.status_code == 201, answer.text
    job = product.until(answer.json()["id"], name, lambda job: job["finished_at"] is not None, 240)
    assert job["status"] == "succeeded", job["reason"]
    assert ("train/loss" if document["task"]["kind"] == "script" else "eval/loss") in job["latest"]


def test_what_init_makes_trains_as_it_stands(product: Product, tmp_path: Path) -> None:
    """Packed, uploaded and unpacked on the way."""
    product.chainrule("init", str(tmp_path / "mine"))
    followed = product.chainrule("submit", str(tmp_path / "mine" / "job.yaml"), "--follow")
    assert "succeeded" in followed
    job = product.http.get("/v1/jobs").json()["data"][0]
    assert job["spec"]["task"]["code"]["file"].startswith("file-")
    assert job["latest"]["eval/accuracy"] >= 0.93


def replaced(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: replaced(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value
