"""Jobs with code of their own on a real Ray: bundles, what they require, and what is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.groups import Group
from workers.reports import ReasonCode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

TEMPLATE = Path(__file__).parents[2] / "workers" / "template"
DIGITS = (TEMPLATE / "digits.py").read_text()


def bundle(folder: Path, **files: str) -> Path:
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name}.py", text)
    return folder / "bundle.zip"


def wheel(folder: Path) -> Path:
    """A package that is nowhere else, as pip takes it."""
    path = folder / "tinyrate-1.0-py3-none-any.whl"
    info = "tinyrate-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinyrate.py", "DROPOUT = 0.125\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyrate\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tinyrate.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def job(requirements: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    task = {"kind": "custom", "code": {"file": "file-1", "requirements": requirements or []}, "factory": "mine:build"}
    return {
        "name": "own",
        "task": task | {"metrics": ["accuracy"]},
        "training": {"epochs": 3, "batch_size": 96},
        "workers": {"count": 2},
    } | changes


def test_a_bundle_trains_on_two_workers_with_what_it_requires(groups: Any, tmp_path: Path) -> None:
    source = DIGITS.replace("import numpy as np", "import numpy as np\nimport tinyrate")
    source = source.replace("dropout: float = 0.0", "dropout: float = tinyrate.DROPOUT")
    group: Group = groups(job([f"tinyrate @ file://{wheel(tmp_path)}"]), bundle=bundle(tmp_path, mine=source))
    outcome = group.finished().outcome
    assert outcome is not None
    assert outcome.code is ReasonCode.COMPLETED, outcome
    assert outcome.detail["metrics"]["eval/accuracy"] > 0.7
    places = [path.name for path in group.folder.code_path.iterdir() if path.is_dir()]
    assert len(places) == 2, "one with the bundle and one with what it requires, for both workers"
    _is_an_mlflow_model(group.folder.model_path, tmp_path)


def _is_an_mlflow_model(model: Path, elsewhere: Path) -> None:
    """Loaded in a process of its own, where the code is nowhere but in the model."""
    (elsewhere / "inputs.json").write_text(json.dumps(np.full((3, 64), 8.0).tolist()))
    code = (
        "import sys, json, types, numpy as np, mlflow.pyfunc\n"
        "sys.modules['tinyrate'] = types.SimpleNamespace(DROPOUT=0.125)\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(model.predict(np.array(json.load(open(sys.argv[2])))).to_json())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(model), str(elsewhere / "inputs.json")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert set(json.loads(run.stdout.splitlines()[-1])) == {"digit", "probability"}
    assert (model / "code" / "mine.py").is_file()
    assert "tinyrate @ file://" in (model / "requirements.txt").read_text()


# What else can be wrong is told by the same way; tests/unit/test_custom.py has it.
BAD: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("does not import", {"mine": "import helper\n", "helper": "x = 1\nimport no_such_module_here\n"}, {},
     "import mine failed: helper.py line 2: ModuleNotFoundError: No module named 'no_such_module_here'"),
    ("requirement", {"mine": DIGITS}, {"code": {"file": "file-1", "requirements": ["gone @ file:///nowhere/gone-1.0-py3-none-any.whl"]}},
     "task.code.requirements: pip could not install them"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "changes", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_wrong_ends_the_job_for_good(
    groups: Any, tmp_path: Path, files: dict[str, str], changes: dict[str, Any], said: str
) -> None:
    spec = job(workers={"count": 1})
    group: Group = groups(spec | {"task": spec["task"] | changes}, bundle=bundle(tmp_path, **files))
    outcome = group.finished().outcome
    assert outcome is not None
    assert outcome.code is ReasonCode.BAD_CODE, outcome
    assert said in outcome.message, outcome.message
