"""Bundles of code from strangers: what is taken, and that nothing else is written anywhere."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.packing import PackingError, cloned, packed, split_git_url
from workers import bundles
from workers.bundles import BundleError, check, read_texts, sha256_of, unpack

pytestmark = pytest.mark.unit

FILES = {"train.py": b"import helper\n", "package/__init__.py": b"", "package/data/table.csv": b"a,b\n1,2\n"}


def as_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_tar(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz", files: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # a mode of ours
        for name, content in (files or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in members:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_it_is_unpacked_into_a_folder_named_by_its_digest(tmp_path: Path, form: str) -> None:
    path = tmp_path / "bundle"
    if form == "zip":
        as_zip(path, FILES)
    else:
        as_tar(path, mode=f"w:{form.partition('.')[2]}", files=FILES)
    check(path)
    folder = unpack(path, tmp_path / "into")
    assert folder == tmp_path / "into" / sha256_of(path)
    assert contents(folder) == FILES
    assert read_texts(path, lambda name: name == "train.py") == {
        **dict.fromkeys(FILES, b""),
        "train.py": b"import helper\n",
    }


def test_many_at_once_unpack_one_folder(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "bundle", FILES)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: unpack(path, tmp_path / "into"), range(16)))
    assert len(folders) == 1
    assert [found.name for found in (tmp_path / "into").iterdir()] == [sha256_of(path)]
    assert contents(folders.pop()) == FILES


def bomb(path: Path) -> Path:
    """Some 100 KB that become 64 MB."""
    with gzip.open(path, "wb", compresslevel=1) as stream:
        info = tarfile.TarInfo("zeros")
        info.size = 64 << 20
        stream.write(info.tobuf())
        for _ in range(4):
            stream.write(b"\0" * (16 << 20))
    return path


def long_header(path: Path) -> Path:
    """A name of 500 MB, which tarfile would hold in memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 500 << 20
    path.write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + b"x" * 4096)
    return path


def encrypted(path: Path) -> Path:
    content = bytearray(as_zip(path, {"secret.py": b"x"}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    return path


def linked(path: Path) -> Path:
    info = zipfile.ZipInfo("link.py")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def damaged(path: Path) -> Path:
    content = bytearray(as_zip(path, {"a.py": b"value = 1\n" * 100}, zipfile.ZIP_STORED).read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    return path


def huge_directory(path: Path) -> Path:
    content = as_zip(path, FILES).read_bytes()
    at = content.rindex(b"PK\x05\x06")
    path.write_bytes(content[: at + 12] + (1 << 30).to_bytes(4, "little") + content[at + 16 :])
    return path


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD: list[tuple[str, Callable[[Path], Path], str]] = [
    ("absolute", lambda p: as_zip(p, {"/etc/x": b""}), "'/etc/x' leads out"),
    ("parent", lambda p: as_zip(p, {"a/../../x": b""}), "'a/../../x' leads out"),
    ("parent in a tar", lambda p: as_tar(p, files={"../x": b""}), "'../x' leads out"),
    ("drive", lambda p: as_zip(p, {"C:/x": b""}), "'C:/x' leads out"),
    ("backslash", lambda p: as_tar(p, files={"..\\x": b""}), "backslash"),
    ("control character", lambda p: as_tar(p, files={"a\nb": b""}), "control character"),
    ("long name", lambda p: as_tar(p, files={"a" * 300: b""}), "too long"),
    ("symbolic link", lambda p: as_tar(p, member("link", tarfile.SYMTYPE, "/etc")), "'link' is neither a file nor a folder"),
    ("hard link", lambda p: as_tar(p, member("link", tarfile.LNKTYPE, "train.py"), files=FILES), "'link' is neither"),
    ("device", lambda p: as_tar(p, member("null", tarfile.CHRTYPE)), "'null' is neither"),
    ("pipe", lambda p: as_tar(p, member("pipe", tarfile.FIFOTYPE)), "'pipe' is neither"),
    ("link in a zip", linked, "'link.py' is neither"),
    ("twice", lambda p: as_tar(p, member("a.py"), member("./a.py")), "'a.py' is there twice"),
    ("file as folder", lambda p: as_tar(p, member("a"), member("a/b")), "'a/b' is there twice, or is a file and a folder"),
    ("folder as file", lambda p: as_tar(p, member("a/b"), member("a")), "'a' is there twice, or is a file and a folder"),
    ("encrypted", encrypted, "'secret.py' is encrypted"),
    ("damaged", damaged, "Bad CRC-32 for file 'a.py'"),
    ("cut off", lambda p: text(p, as_zip(p, FILES).read_bytes()[:-30]), "its end is missing"),
    ("huge directory", huge_directory, "more than 50 entries"),
    ("empty zip", lambda p: as_zip(p, {}), "is empty"),
    ("empty tar", lambda p: as_tar(p), "is empty"),
    ("no archive", lambda p: text(p, b"print('hello')\n" * 100), "is no readable zip or tar"),
    ("nothing", lambda p: text(p, b""), "is no readable|is empty"),
    ("many entries", lambda p: as_tar(p, *(member(f"f{n}") for n in range(51))), "more than 50 entries"),
    ("bomb", bomb, "larger than 48 MiB when unpacked"),
    ("long header", long_header, "header of 524288000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_not_taken_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], said: str
) -> None:
    monkeypatch.setattr(bundles, "MAX_BYTES", 48 << 20)
    monkeypatch.setattr(bundles, "MAX_ENTRIES", 50)
    path = make(tmp_path / "bundle")
    with pytest.raises(BundleError, match=said):
        unpack(path, tmp_path / "into" / "it")
    assert not list((tmp_path / "into" / "it").iterdir())
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle", "into"}


def test_a_zip_that_lies_about_its_size_is_cut_short(tmp_path: Path) -> None:
    content = as_zip(tmp_path / "bundle", {"a": b"0" * 5000}).read_bytes()
    (tmp_path / "bundle").write_bytes(content.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(BundleError):
        unpack(tmp_path / "bundle", tmp_path / "into")


# --- packing ----------------------------------------------------------------------------------------------------------


def project(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_packed_without_what_is_no_code(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    for name in (".git/config", "__pycache__/train.pyc", ".venv/bin/python", "outputs/run/model", "package/old.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "run.sh").write_text("true\n")
    (folder / "run.sh").chmod(0o755)
    with packed(folder) as bundle:
        assert bundle.name == "project.zip"
        first = sha256_of(bundle)
        found = unpack(bundle, tmp_path / "into")
    assert contents(found) == {**FILES, "run.sh": b"true\n"}
    assert os.access(found / "run.sh", os.X_OK)
    os.utime(folder / "train.py", (0, 0))
    with packed(folder) as bundle:
        assert sha256_of(bundle) == first, "the same files make the same bundle"


@pytest.mark.parametrize("what", ["link out", "linked folder", "empty", "missing"])
def test_folders_that_cannot_be_packed(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "project"
    if what != "missing":
        folder.mkdir()
    if what == "link out":
        (folder / "passwd").symlink_to("/etc/passwd")
    if what == "linked folder":
        (folder / "data").symlink_to("/tmp")
    with pytest.raises(PackingError, match=str(folder)), packed(folder):
        pass


def test_a_git_address_is_cloned_at_its_revision(tmp_path: Path) -> None:
    folder = project(tmp_path / "project.git")

    def git(*arguments: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-C", str(folder)]
        return subprocess.run(["git", *own, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (folder / "train.py").write_text("changed\n")
    git("commit", "--quiet", "-am", "second")
    with cloned(f"git+file://{folder}@{commit}") as (found, name):
        assert name == f"project-{commit[:12]}"
        assert (found / "train.py").read_bytes() == FILES["train.py"]
    with cloned(f"git+file://{folder}") as (found, _):
        assert (found / "train.py").read_text() == "changed\n"
    with pytest.raises(PackingError, match="git: "), cloned(f"git+file://{folder}@nowhere"):
        pass


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("git+https://host/a/b.git@v1", ("https://host/a/b.git", "v1")),
        ("git+https://host/a/b", ("https://host/a/b", None)),
        ("git+ssh://git@host/a/b@feature/x", ("ssh://git@host/a/b", "feature/x")),
        ("git+ssh://git@host/a/b", ("ssh://git@host/a/b", None)),
    ],
)
def test_parts_of_a_git_address(url: str, parts: tuple[str, str | None]) -> None:
    assert split_git_url(url) == parts
