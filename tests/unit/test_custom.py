"""Code of the user's own: what is wrong with it is told by field, file and line, before it runs where that is possible."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.kinds.code import Code
from workers.kinds.custom import CustomTask
from workers.sources.code import look_at_factory
from workers.sources.problems import BadCodeError, BadDataError
from workers.spec import parse_spec
from workers.tasks import build_task
from workers.user_code import provide

pytestmark = pytest.mark.unit

TASK = """
import torch
from torch import nn

class Points:
    def __init__(self, n):
        self.x = torch.linspace(0, 1, n)
    def __len__(self):
        return len(self.x)
    def batch(self, indices, *, seed):
        return {"x": self.x[torch.as_tensor(indices)]}

class Task:
    def __init__(self, width, n=8, seed=None):
        self.width, self.n, self.seed = width, n, seed
    def datasets(self):
        return Points(self.n), None
    def model(self):
        return nn.Linear(1, self.width)
    def loss(self, model, batch):
        return model(batch["x"][:, None]).square().sum(), len(batch["x"])
    def evaluate(self, model, batch):
        return {"loss": self.loss(model, batch)}
"""


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that no other test has imported; the search path is put back."""
    before = list(sys.path)
    name = f"task_{abs(hash(request.node.name))}"
    yield name
    sys.path[:] = before
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        del sys.modules[known]


def spec(folder: Path, factory: str, **changes: Any) -> CustomTask:
    code = {"path": str(folder), **changes.pop("code", {})}
    document = {"kind": "custom", "code": code, "factory": factory, **changes}
    task = parse_spec({"name": "own", "task": document}).task
    assert isinstance(task, CustomTask)
    return task


def built(folder: Path, factory: str, **changes: Any) -> Any:
    task = spec(folder, factory, **changes)
    return build_task(task, 7, provide(task.code, None, folder / "made"))


def test_a_task_of_four_methods_is_enough(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(TASK)
    task = built(tmp_path, f"{module}:Task", arguments={"width": 3})
    look_at_factory(spec(tmp_path, f"{module}:Task", arguments={"width": 3}), None)
    assert task._task.seed == 7, "the job's seed, because there is an argument of that name"
    data, model = task.datasets().train, task.model()
    loss, count = task.loss(model, data.batch([0, 3], seed=0))
    assert (loss.shape, int(count)) == ((), 2)
    assert task.evaluate(model, data.batch([1], seed=0))["loss"][1] == 1
    assert task.facts().input_shape == ()
    assert not hasattr(task, "illustrate")


def test_packages_and_python_path(tmp_path: Path, module: str) -> None:
    package = tmp_path / "src" / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(TASK + "def build(**anything):\n    return Task(**anything)\n")
    changes: dict[str, Any] = {"arguments": {"width": 1, "n": 4}, "code": {"python_path": ["src"]}}
    look_at_factory(spec(tmp_path, f"{module}.inner:build", **changes), None)
    assert len(built(tmp_path, f"{module}.inner:build", **changes).datasets().train) == 4


def test_samples_one_by_one_become_batches(tmp_path: Path, module: str) -> None:
    source = TASK.replace("return Points(self.n), None", "return [(torch.ones(2) * i, i) for i in range(5)], None")
    (tmp_path / f"{module}.py").write_text(source)
    batch = built(tmp_path, f"{module}:Task", arguments={"width": 1}).datasets().train.batch([1, 4], seed=0)
    assert torch.equal(batch["inputs"], torch.tensor([[1.0, 1.0], [4.0, 4.0]]))
    assert batch["targets"].tolist() == [1, 4]


SEEN_BEFORE: list[tuple[str, str, str, dict[str, Any], str, str]] = [
    ("syntax", "x = 1\ndef build(:\n", "build", {}, "task.factory", "MODULE.py line 2: "),
    ("missing name", "def other(): pass\n", "build", {}, "task.factory", "MODULE.py has no build; it defines other"),
    (
        "unknown argument",
        "def build(a, *, b=1): pass\n",
        "build",
        {"a": 1, "c": 2},
        "task.arguments.c",
        "it takes a, b",
    ),
    (
        "missing argument",
        "def build(a, *, b): pass\n",
        "build",
        {"a": 1},
        "task.arguments.b",
        "MODULE.py build needs it",
    ),
    ("class", "class B:\n    def __init__(self, a): pass\n", "B", {}, "task.arguments.a", "needs it"),
    ("positional only", "def build(a, /, b): pass\n", "build", {"a": 1, "b": 1}, "task.arguments.a", "it takes b"),
    ("NUL", "x = '\0'\n", "build", {}, "task.factory", "MODULE.py is no Python|null byte"),
]
SEEN_LATER: list[tuple[str, str, str, dict[str, Any], str, str]] = [
    ("import", "\nimport no_such_module_here\ndef build(): pass\n", "build", {}, "task.factory",
     "import MODULE failed: MODULE.py line 2: ModuleNotFoundError: No module named 'no_such_module_here'"),
    ("exit", "import sys\nsys.exit(3)\ndef build(): pass\n", "build", {}, "task.factory", "MODULE.py line 2: SystemExit: 3"),
    ("decorated", "import functools\n@functools.cache\ndef build(a): pass\n", "build", {}, "task.arguments.a", "needs it"),
    ("made", "build = dict(a=1).get('a')\n", "build", {}, "task.factory", "is a int; it must be a function or a class"),
    ("raises", "def build(a=0):\n    return 1 / a\n", "build", {"a": 0}, "task.factory",
     r"MODULE:build\(a\) failed: MODULE.py line 2: ZeroDivisionError"),
    ("nothing", "def build(): pass\n", "build", {}, "task.factory", "gave None, which is no task: it has no datasets, model, loss, evaluate"),
    ("half a task", "class B:\n    def datasets(self): pass\n    def model(self): pass\n", "B", {}, "task.factory",
     "gave a B, which is no task: it has no loss, evaluate"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name", "arguments", "field", "said"), [c[1:] for c in SEEN_BEFORE], ids=[c[0] for c in SEEN_BEFORE]
)
@pytest.mark.parametrize("as_bundle", [False, True])
def test_seen_without_running_it(
    tmp_path: Path,
    module: str,
    as_bundle: bool,
    source: str,
    name: str,
    arguments: dict[str, Any],
    field: str,
    said: str,
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    task, bundle = spec(tmp_path, f"{module}:{name}", arguments=arguments), None
    if as_bundle:
        bundle = tmp_path / "bundle.zip"
        with zipfile.ZipFile(bundle, "w") as archive:
            archive.writestr(f"{module}.py", source)
        task = task.model_copy(update={"code": Code(file="file-1")})
    with pytest.raises(BadCodeError, match=said.replace("MODULE", module)) as caught:
        look_at_factory(task, bundle)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("source", "name", "arguments", "field", "said"), [c[1:] for c in SEEN_LATER], ids=[c[0] for c in SEEN_LATER]
)
def test_seen_when_it_is_built(
    tmp_path: Path, module: str, source: str, name: str, arguments: dict[str, Any], field: str, said: str
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(BadCodeError, match=said.replace("MODULE", module)) as caught:
        built(tmp_path, f"{module}:{name}", arguments=arguments)
    assert caught.value.field == field


def test_what_a_look_cannot_know_it_lets_pass(tmp_path: Path, module: str) -> None:
    for source in (
        "from somewhere import *\n",
        "from somewhere import build\n",
        "build = make()\n",
        "if True:\n    def build(a): pass\n",
        "import functools\n@functools.cache\ndef build(a): pass\n",
        "class build(Base): pass\n",
        "def __getattr__(name): pass\n",
    ):
        (tmp_path / f"{module}.py").write_text(source)
        look_at_factory(spec(tmp_path, f"{module}:build"), None)
    look_at_factory(spec(tmp_path, "elsewhere:build", code={"requirements": ["elsewhere"]}), None)


def test_a_module_of_the_machine_does_not_stand_in_for_one_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(TASK)
    with pytest.raises(BadCodeError, match="which hides the one of the code"):
        built(tmp_path, "json:Task", arguments={"width": 1})


def test_problems_with_data_stay_problems_with_data(tmp_path: Path, module: str) -> None:
    source = (
        "from workers.tasks.base import BadDataError\ndef build():\n    raise BadDataError('task.arguments.x', 'no')\n"
    )
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(BadDataError) as caught:
        built(tmp_path, f"{module}:build")
    assert not isinstance(caught.value, BadCodeError)


METHODS: list[tuple[str, str, str, str]] = [
    ("datasets", "return Points(self.n), None", "return Points(self.n)", r"datasets\(\) gave a Points"),
    ("no length", "return Points(self.n), None", "return iter([1]), None", "it must have __len__"),
    ("no data", "return Points(self.n), None", "return Points(0), None", "gave no training data"),
    ("batch", '{"x": self.x[torch.as_tensor(indices)]}', "torch.ones(2)", "gave a Tensor as"),
    ("batch of all", '{"x": self.x[torch.as_tensor(indices)]}', '{"x": self.x}', r"shape \(8,\) as 'x' of 2 samples"),
    ("model", "return nn.Linear(1, self.width)", "return None", r"model\(\) gave None"),
    ("loss", '.sum(), len(batch["x"])', '.sum()', r"loss\(\) gave a Tensor"),
    ("loss of each", ".square().sum()", ".square()", r"loss\(\) gave shapes \(2, 1\)"),
    ("evaluate", 'return {"loss": self.loss(model, batch)}', "return 3", r"evaluate\(\) gave a int"),
    ("metric", 'return {"loss": self', 'return {"other": self', r"evaluate\(\) gave other; loss is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), [case[1:] for case in METHODS], ids=[case[0] for case in METHODS])
def test_methods_are_held_to_what_the_loop_relies_on(
    tmp_path: Path, module: str, old: str, new: str, said: str
) -> None:
    assert old in TASK
    (tmp_path / f"{module}.py").write_text(TASK.replace(old, new))
    task = built(tmp_path, f"{module}:Task", arguments={"width": 1})
    with pytest.raises(BadCodeError, match=said):
        use(task)


def use(task: Any) -> None:
    batch = task.datasets().train.batch([0, 1], seed=0)
    task.loss(task.model(), batch)
    task.evaluate(task.model(), batch)


CODES: list[tuple[dict[str, Any], str]] = [
    ({}, "task.code: give exactly one of path, file or git"),
    ({"path": "/a", "file": "file-1"}, "not path and file"),
    ({"file": "../x"}, "task.code.file"),
    ({"git": "https://host/a"}, "task.code.git"),
    ({"git": "git+ext::sh"}, "task.code.git"),
    ({"path": "/a", "python_path": ["../b"]}, r"task.code.python_path\[0\]: must be a folder of the code"),
    ({"path": "/a", "python_path": ["/b"]}, r"task.code.python_path\[0\]"),
    ({"path": "/a", "requirements": ["--index-url=x"]}, r"task.code.requirements\[0\]: is no requirement"),
    ({"path": "/a", "requirements": ["ok", "a b"]}, r"task.code.requirements\[1\]"),
    ({"path": "/a", "requirements": ["a @ ftp://x/y"]}, "must begin with https://"),
    ({"path": "/a", "requirements": ["a\n-r b"]}, r"task.code.requirements\[0\]"),
]


@pytest.mark.parametrize(("code", "said"), CODES, ids=[str(case[0]) for case in CODES])
def test_code_is_described_strictly(code: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_spec({"name": "own", "task": {"kind": "custom", "code": code, "factory": "a:b"}})


@pytest.mark.parametrize(
    "text",
    ["einops", "a.b-c_d[x,y]>=1.0,<2 ; python_version > '3.8'", "a==1.*", "a (>=1)", "a @ https://h/a.whl", "a~=1.2"],
)
def test_requirements_of_every_form(text: str) -> None:
    assert Code(path="/a", requirements=[text]).requirements == [text]


@pytest.mark.parametrize("factory", ["build", "a:", ":b", "a.b", "a:b:c", "../a:b", "a-b:c", "a:b c", "a:b\n"])
def test_factories_are_modules_and_functions(factory: str) -> None:
    with pytest.raises(ValueError, match="must be module:function"):
        parse_spec({"name": "own", "task": {"kind": "custom", "code": {"path": "/a"}, "factory": factory}})


def test_a_custom_job_survives_the_way_through_the_service(tmp_path: Path) -> None:
    document = {"name": "own", "evaluation": {"best": "eval/f1", "mode": "max"},
                "task": {"kind": "custom", "code": {"path": "/a"}, "factory": "a:b", "metrics": ["f1"]}}  # fmt: skip
    job = parse_spec(document)
    assert isinstance(job.task, CustomTask)
    assert job.task.metrics() == ("loss", "f1")
    assert parse_spec(job.model_dump(mode="json")) == job
    assert type(job).model_validate_json(job.model_dump_json()) == job
