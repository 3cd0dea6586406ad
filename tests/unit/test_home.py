"""The home folder: one owner at a time, secrets that nobody else reads, an address only while somebody is there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import api.home
from api.home import Home, HomeError, Service

pytestmark = pytest.mark.unit

SERVICE = Service("http://127.0.0.1:1", "http://127.0.0.1:2", 1)
OWN = "import sys; from api.home import Home; h = Home(sys.argv[1]); h.acquire(); print('mine', flush=True); sys.stdin.read()"


@contextmanager
def owner(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the home."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=10)


def test_a_home_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with owner(tmp_path / "home") as other, pytest.raises(HomeError, match=rf"pid {other.pid}\)"):
        Home(tmp_path / "home").acquire()
    home = Home(tmp_path / "home")
    home.acquire()  # the other has ended
    home.release()
    home.acquire()
    home.release()


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    with owner(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=10)
        home = Home(tmp_path)
        home.acquire()
        home.release()


def test_the_home_of_a_killed_owner_is_waited_for_while_its_guardian_ends_everything(tmp_path: Path) -> None:
    """The guardian has the lock open too. Starting beside processes that are being ended would mix two installations."""
    first = Home(tmp_path)
    first.acquire()
    guardian = os.dup(first.lock)
    (tmp_path / "lock").write_text("2147483647")  # a pid that cannot be
    first.release()
    second = Home(tmp_path)
    threading.Timer(0.4, os.close, [guardian]).start()
    second.acquire()
    second.release()


def test_a_look_at_the_home_does_not_look_like_an_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.path.mkdir(exist_ok=True)
    home.announce(SERVICE)
    ready = threading.Event()

    def look() -> None:
        while not ready.is_set():
            Home(tmp_path).service()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(20):
            home.acquire()
            home.release()
    finally:
        ready.set()
        looking.join()


def test_a_home_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="cannot be used"):
        Home(tmp_path / "file" / "home").acquire()


def test_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = Home(tmp_path / "home")
        home.acquire()
        token = home.ray_token()
    finally:
        os.umask(before)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    token.chmod(0o644)
    assert home.ray_token().read_text() == token.read_text(), "the cluster that runs knows this one"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    home.release()


def test_the_address_counts_only_while_the_home_is_taken(tmp_path: Path) -> None:
    with owner(tmp_path):
        Home(tmp_path).announce(SERVICE)
        assert Home(tmp_path).service() == SERVICE
    assert (tmp_path / api.home.SERVICE).exists(), "as a SIGKILL leaves it"
    assert Home(tmp_path).service() is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"url": 1}', '{"url": "x", "pid": 1, "more": 2}'])
def test_a_file_of_another_make_is_no_service(tmp_path: Path, content: str) -> None:
    with owner(tmp_path):
        (tmp_path / "service.json").write_text(content)
        assert Home(tmp_path).service() is None


def test_the_folder_comes_from_the_option_then_the_environment_then_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_HOME", str(tmp_path / "environment"))
    assert Home(tmp_path / "option").path == tmp_path / "option"
    assert Home().path == tmp_path / "environment"
    monkeypatch.delenv("CHAINRULE_HOME")
    assert Home().path == Path.home() / ".chainrule"
