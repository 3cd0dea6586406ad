"""Records of runs that are kept in a folder, so that rules can be judged again without training again."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.loop import run
from workers.watch.record import Record

ROOT = Path(__file__).parents[2]
# What a record depends on besides its case: the suite's loop, and the product's parts that measure.
SOURCES = (
    *(f"benchmarks/pitfalls/{name}.py" for name in ("case", "data", "faults", "loop", "models", "recipe", "recording")),
    *(f"workers/{name}.py" for name in ("gradients",)),
    *(
        f"workers/watch/{name}.py"
        for name in ("activations", "facts", "gradient_probe", "layer_facts", "loss_call", "probe_rows", "probes", "record", "sampling", "spending",
            "tensor_facts")
    ),
)  # fmt: skip


def recorded(case: Case, seed: int, folder: Path | None = None, *, healed: bool = False) -> Record:
    """Trains where ``folder`` does not have the run yet. ``healed``: without the fault. Files are pickles: of one's own folder only."""
    build = case.healed if healed else case.build
    assert build is not None
    path = path_of(case, seed, folder, healed=healed) if folder else None
    if path is not None and path.exists():
        found = pickle.loads(path.read_bytes())
        assert isinstance(found, Record)
        return found
    record = run(build(seed), seed, watch=True).record
    assert record is not None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(record))
        part.rename(path)  # another process may be looking
    return record


def path_of(case: Case, seed: int, folder: Path, *, healed: bool = False) -> Path:
    name = case.name.replace("/", ".") + (".healed" if healed else "")
    return folder / f"{name}-{seed}-{_digest(case.family)}.pickle"


# As they were when this process began: what it records comes from the code that it has loaded.
CONTENT = {name: (ROOT / name).read_bytes() for name in SOURCES}
CASES = {path.stem: path.read_bytes() for path in (ROOT / "benchmarks/pitfalls/cases").glob("*.py")}
UNSEEN = {path.stem: path.read_bytes() for path in (ROOT / "benchmarks/pitfalls/unseen").glob("*.py")}


def _digest(family: str) -> str:
    """Of the source that makes a family's records."""
    cases = [CASES[name] for name in sorted(CASES) if name == family or name.startswith(f"{family}_")]
    of_family = family.removeprefix("unseen_") if family.startswith("unseen_") else None
    made_of = [UNSEEN[name] for name in sorted(UNSEEN) if of_family and name.partition("_")[0] in ("shared", of_family)]
    return hashlib.sha256(b"".join([*CONTENT.values(), *cases, *made_of])).hexdigest()[:12]
