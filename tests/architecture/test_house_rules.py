"""The rules of the house that a reader would otherwise have to remember: import directions, light imports, complete tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.architecture

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "service", "workers")
LIGHT = ("workers.spec", "workers.reports", "workers.jobfile", "workers.jobfolder")
HEAVY = ("torch", "ray", "mlflow", "transformers", "sklearn", "pandas")


def modules(package: str) -> Iterator[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no module in {package}/: the test looks at the wrong place"
    return iter(found)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute import in ``path``, also those inside functions, as (module, line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("workers", {"api", "service", "fastapi", "sqlalchemy"}),
        ("service", {"api", "torch", "fastapi"}),
        ("api", {"torch", "ray"}),
    ],
)
def test_imports_go_one_way(package: str, forbidden: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules(package)
        for module, line in imported(path)
        if top(module) in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_cluster_adapter_of_the_service_imports_ray() -> None:
    importers = {path.name for path in modules("service") for module, _ in imported(path) if top(module) == "ray"}
    assert importers == {"ray_cluster.py"}


def test_the_tests_above_see_a_wrong_import(tmp_path: Path) -> None:
    """Guards the guard: an import hidden in a function is found too."""
    module = tmp_path / "hidden.py"
    module.write_text("def f():\n    from torch.nn import Module\n    return Module\n")
    assert list(imported(module)) == [("torch.nn", 2)]


def test_workers_init_is_empty() -> None:
    assert (ROOT / "workers/__init__.py").read_text() == ""


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_the_ground_floor_is_light(module: str) -> None:
    assert not loaded_after(f"import {module}") & set(HEAVY)


def test_the_job_spec_needs_pydantic_and_the_standard_library_only() -> None:
    extra = loaded_after("import workers.spec") - loaded_after("import pydantic; pydantic.BaseModel") - {"workers"}
    own = set(sys.stdlib_module_names) | {"annotated_types"}  # pydantic's own dependency, which it loads when needed
    assert extra <= own, extra - own


@pytest.mark.parametrize("module", ["api.app", "api.cli.main", "service.scheduler"])
def test_control_plane_processes_load_neither_torch_nor_ray(module: str) -> None:
    assert not loaded_after(f"import {module}") & {"torch", "ray"}


def test_commands_start_without_what_few_of_them_need() -> None:
    """NumPy and the file systems of other machines take longer than a command that asks the service."""
    assert not loaded_after("import api.cli.main") & {"numpy", "upath", "pandas", "sqlalchemy", "fastapi"}


def test_data_is_looked_at_without_torch() -> None:
    families = ", ".join(f"workers.data_checks.{name}" for name in ("images", "tables", "texts", "tokens", "chains"))
    assert not loaded_after(f"import workers.data_checks.__main__, {families}") & {*HEAVY, "biotite", "datasets"}


def test_every_service_error_has_an_http_status() -> None:
    from api.errors import STATUS
    from service.errors import ServiceError

    def family(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
        yield error
        for child in error.__subclasses__():
            yield from family(child)

    assert {error.__name__ for error in family(ServiceError)} - {error.__name__ for error in STATUS} == set()


def test_every_task_kind_of_the_spec_is_built() -> None:
    from workers.sources.inspect import LOOKS
    from workers.task_spec import KINDS
    from workers.tasks import FACTORIES, RUNNERS

    assert not set(FACTORIES) & set(RUNNERS)
    assert {*FACTORIES, *RUNNERS} == set(LOOKS) == set(KINDS)


def test_no_two_test_files_have_one_name() -> None:
    """Processes that a test starts find its functions by the name of its file."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_test_file_is_run() -> None:
    """``make test`` names the folders, in two groups."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [
        name for line in makefile.splitlines() if line.startswith(("SHARED", "ALONE")) for name in line.split()[2:]
    ]
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(named) == sorted(folders)


def test_the_readme_tree_is_true() -> None:
    """Each path in the README's annotated tree exists, and each module of the three packages' top floor is in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("<!-- tree -->")[2].partition("<!-- /tree -->")[0]
    named, folder = set(), ""
    for line in filter(str.strip, tree.replace("```", "").splitlines()):
        entry = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        for name in entry.split():
            if not line.startswith(" "):
                folder = name if name.endswith("/") else ""
                named.add(name.rstrip("/"))
            else:
                named.add(folder + name.rstrip("/"))
    assert named, "the README has no tree between its markers"
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing, f"named, but not there: {sorted(missing)}"
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" and path.name != "__init__.py"
    }
    assert there <= named, f"there, but not named: {sorted(there - named)}"
