"""PDB and mmCIF files: what is read of them, what is missing in them, and what is said of files that cannot be used."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.proteins import atoms, backbone, data_set, write
from workers.sources import chains
from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.sources.structures import Chain, read_chains
from workers.spec import parse_spec

pytestmark = pytest.mark.unit

SEQUENCE = "AGVLSKEP"


def helix(sequence: str = SEQUENCE, chain: str = "A") -> Any:
    return atoms(sequence, backbone("helix", len(sequence)), chain)


def read(path: Path) -> Chain:
    (found,) = read_chains("task.data.path", path, "first")
    return found


@pytest.mark.parametrize("name", ["x.pdb", "x.cif", "x.pdb.gz", "x.cif.gz"])
def test_both_formats_plain_and_packed(tmp_path: Path, name: str) -> None:
    plain = write(tmp_path / name.removesuffix(".gz"), helix())
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    chain = read(tmp_path / name)
    assert (chain.name, chain.sequence, len(chain)) == ("x", SEQUENCE, 8)
    np.testing.assert_allclose(chain.backbone, backbone("helix", 8), atol=2e-3)
    assert chain.resolved.all()
    assert chain.position.tolist() == list(range(8))
    assert chain.bonded.tolist() == [False] + [True] * 7


def test_a_missing_atom_masks_its_residue(tmp_path: Path) -> None:
    array = helix()
    chain = read(write(tmp_path / "x.pdb", array[~((array.res_id == 4) & (array.atom_name == "C"))]))
    assert chain.sequence == SEQUENCE
    assert chain.resolved.tolist() == [True] * 3 + [False] + [True] * 4
    assert (chain.backbone[3] == 0).all()
    assert chain.position.tolist() == list(range(8))
    assert chain.bonded.tolist() == [False, True, True, False, False, True, True, True]


def test_missing_residues_leave_a_gap(tmp_path: Path) -> None:
    array = helix()
    chain = read(write(tmp_path / "x.pdb", array[~np.isin(array.res_id, [3, 4, 5])]))
    assert chain.sequence == "AGKEP"
    assert chain.position.tolist() == [0, 1, 5, 6, 7]
    assert chain.bonded.tolist() == [False, True, False, True, True]


def test_a_break_whose_numbering_says_nothing(tmp_path: Path) -> None:
    array = helix()
    array = array[~np.isin(array.res_id, [3, 4, 5])]
    array.res_id = np.where(array.res_id > 5, array.res_id - 6, array.res_id)  # 1, 2, 0, 1, 2
    positions = read(write(tmp_path / "x.pdb", array)).position
    assert positions[2] - positions[1] > 32, "beyond what relative positions tell apart"


def test_insertion_codes_are_residues_of_their_own(tmp_path: Path) -> None:
    array = helix()
    array.ins_code = np.where(np.isin(array.res_id, [4, 5]), np.where(array.res_id == 4, "A", "B"), "")
    array.res_id = np.select([array.res_id < 4, array.res_id < 6], [array.res_id, 3], array.res_id - 2)  # 3, 3A, 3B, 4
    chain = read(write(tmp_path / "x.pdb", array))
    assert chain.sequence == SEQUENCE
    assert chain.position.tolist() == list(range(8))


def test_of_alternate_positions_the_fuller_one_is_read(tmp_path: Path) -> None:
    lines = write(tmp_path / "x.pdb", helix()).read_text().splitlines()
    index = next(i for i, line in enumerate(lines) if line[12:16].strip() == "CA" and line[22:26].strip() == "3")
    line = lines[index]
    first = f"{line[:16]}A{line[17:54]}  0.30{line[60:]}"
    second = f"{line[:16]}B{line[17:46]}  99.000  0.70{line[60:]}"
    (tmp_path / "x.pdb").write_text("\n".join([*lines[:index], first, second, *lines[index + 1 :]]))
    assert read(tmp_path / "x.pdb").backbone[2, 1, 2] == 99


def test_only_the_first_model_is_read(tmp_path: Path) -> None:
    lines = write(tmp_path / "x.pdb", helix()).read_text().splitlines()
    body = [line for line in lines if line.startswith("ATOM")]
    text = ["MODEL        1", *body, "ENDMDL", "MODEL        2", *reversed(body), "ENDMDL"]
    (tmp_path / "x.pdb").write_text("\n".join(text))
    assert read(tmp_path / "x.pdb").sequence == SEQUENCE


def test_modified_residues_unknown_ones_and_ligands(tmp_path: Path) -> None:
    array = helix()
    array.res_name = np.where(array.res_id == 2, "MSE", np.where(array.res_id == 3, "UNK", array.res_name))
    array.hetero = np.isin(array.res_id, [2])
    ligand = helix("G")
    ligand.coord += 50
    ligand.res_id[:], ligand.hetero[:] = 200, True
    water = helix("A")[:1]
    water.res_id[:], water.res_name[:], water.atom_name[:], water.hetero[:] = 300, "HOH", "O", True
    assert read(write(tmp_path / "x.pdb", array + ligand + water)).sequence == "AMXLSKEP"


def test_which_chains_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pdb", helix("AAAA", "B") + helix(SEQUENCE, "A"))
    found = {which: read_chains("f", path, which) for which in ("first", "longest", "all")}
    assert [chain.sequence for chain in found["first"]] == ["AAAA"]
    assert [chain.sequence for chain in found["longest"]] == [SEQUENCE]
    assert [chain.name for chain in found["all"]] == ["x_B", "x_A"]


# --- files that cannot be used ----------------------------------------------------------------------------------------


def no_backbone(path: Path) -> None:
    array = helix()
    write(path, array[array.atom_name == "CA"])


def on_one_line(path: Path) -> None:
    array = helix()
    array.coord[6:9] = [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    write(path, array)


def not_a_number(path: Path) -> None:
    lines = write(path, helix()).read_text().splitlines()
    lines[4] = f"{lines[4][:30]}  xx.xxx{lines[4][38:]}"
    path.write_text("\n".join(lines))


def nan(path: Path) -> None:
    lines = write(path, helix()).read_text().splitlines()
    lines[4] = f"{lines[4][:30]}     nan{lines[4][38:]}"
    path.write_text("\n".join(lines))


def only_water(path: Path) -> None:
    water = helix("A")[:1]
    water.res_name[:], water.atom_name[:], water.hetero[:] = "HOH", "O", True
    write(path, water)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty": ("x.pdb", lambda path: path.write_text(""), "x.pdb is empty"),
    "prose": ("x.pdb", lambda path: path.write_text("hello\n"), "x.pdb has no ATOM record"),
    "prose as mmCIF": ("x.cif", lambda path: path.write_text("data_x\n"), "x.cif has no _atom_site. record"),
    "broken mmCIF": ("x.cif", lambda path: path.write_text("data_x\n_atom_site.id 1\n"), "cannot be read as mmCIF"),
    "not packed": ("x.pdb.gz", lambda path: path.write_text("hello\n"), "x.pdb.gz cannot be read: Not a gzipped file"),
    "cut off": ("x.pdb.gz", lambda path: path.write_bytes(gzip.compress(b"ATOM" * 999)[:-20]), "x.pdb.gz cannot be read"),
    "no text": ("x.pdb", lambda path: path.write_bytes(b"ATOM \xff\xfe"), "x.pdb is no text"),
    "no backbone": ("x.pdb", no_backbone, "no residue of chain A has the backbone.*residue ALA 1 of chain A has CA"),
    "no area": ("x.pdb", on_one_line, "N, CA and C of residue VAL 3 of chain A lie on one line"),
    "no coordinate": ("x.pdb", not_a_number, "line 5, residue 'GLY A   2'"),
    "NaN": ("x.pdb", nan, "residue GLY 2 of chain A has a coordinate that is no number"),
    "no protein": ("x.pdb", only_water, "x.pdb has no amino acid"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    file, make, message = BAD[name]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / file)
    with pytest.raises(BadDataError, match=message) as caught:
        read_chains("task.data.path", tmp_path / "data" / file, "first")
    assert caught.value.field == "task.data.path"
    assert file in caught.value.message


# --- which files, and which of them are held out ----------------------------------------------------------------------


def job(data: dict[str, Any]) -> Any:
    return parse_spec({"name": "x", "task": {"kind": "protein_structure", "data": data}, "training": {"batch_size": 4}})


def folder_of(tmp_path: Path, clusters: dict[str, str]) -> dict[str, Any]:
    (tmp_path / "data").mkdir()
    for number, file in enumerate(clusters):
        write(tmp_path / "data" / file, helix("A" * (20 + number)))
    rows = [f"{file},{cluster},something" for file, cluster in clusters.items()]
    (tmp_path / "table.csv").write_text("\n".join(["file,cluster,more", *rows]))
    return {"path": str(tmp_path / "data"), "clusters": str(tmp_path / "table.csv")}


def test_kin_are_held_out_together(tmp_path: Path) -> None:
    clusters = {f"{i}.pdb": "large" if i < 5 else f"small{i // 2}" for i in range(10)}
    data = folder_of(tmp_path, clusters)
    found = chains.read(job({**data, "holdout": 0.3}).task.data)
    train, evaluation = ({clusters[chain.file.name] for chain in part} for part in (found.train, found.evaluation))
    assert not train & evaluation
    assert 1 <= len(found.evaluation) <= 3
    assert "large" in train, "half of all chains do not fit into 30 %"
    assert len(found.train) + len(found.evaluation) == 10


def test_a_quick_look_counts_crops(tmp_path: Path) -> None:
    spec = job({**data_set(tmp_path), "crops_per_chain": 7})
    assert inspect_data(spec) == []
    assert chains.training_samples(spec.task) == 42


def test_problems_of_folders_and_tables(tmp_path: Path) -> None:
    data = folder_of(tmp_path, {f"{i}.pdb": "one" for i in range(4)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.csv").write_text("file,cluster\n0.pdb,a\n")
    (tmp_path / "columns.csv").write_text("name,cluster\n")
    (tmp_path / "bytes.csv").write_bytes(b"file,cluster\n\xff\xfe,a\n")
    table = data["clusters"]
    rows: list[tuple[dict[str, Any], str, str]] = [
        ({"path": str(tmp_path / "nowhere")}, "task.data.path", "there is no folder"),
        ({"path": table}, "task.data.path", "is a file"),
        ({"path": str(tmp_path / "empty")}, "task.data.path", "has no structure file"),
        ({"path": [str(tmp_path / "data/0.pdb"), str(tmp_path / "no.pdb")]}, "task.data.path[1]", "there is no file"),
        ({"path": [table]}, "task.data.path[0]", "must end in one of"),
        (data, "task.data.holdout", "0.2 of 4 files in 1 clusters leaves a part without any"),
        ({**data, "clusters": str(tmp_path / "short.csv")}, "task.data.clusters", "has no cluster for 1.pdb"),
        ({**data, "clusters": str(tmp_path / "columns.csv")}, "task.data.clusters", "has no column 'file'"),
        ({**data, "clusters": str(tmp_path / "bytes.csv")}, "task.data.clusters", "cannot be read as CSV"),
        ({**data, "clusters": None, "holdout": 0.3, "min_residues": 60}, "task.data.path", "no chain has 60 to 512"),
    ]
    for document, field, message in rows:
        (problem,) = inspect_data(job(document))
        assert problem.path == field
        assert message in problem.message


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    data = folder_of(tmp_path, {f"{i}.pdb": str(i) for i in range(6)})
    (tmp_path / "data" / "link.pdb").symlink_to(write(tmp_path / "elsewhere.pdb", helix()))
    (problem,) = inspect_data(job({**data, "clusters": None}))
    assert "a link to a place outside" in problem.message
