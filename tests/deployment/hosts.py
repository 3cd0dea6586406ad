"""Hosts of their own on one machine: each has its own network, processes, mounts, /tmp/ray and /dev/shm, as a container has.

Network namespaces are joined by bridges in one more namespace; this machine's own network is not touched. Needs root, and Debian's iproute2.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).parents[2]
CLOSED = "/root"  # a home that other users cannot pass through, where Python may be installed
SECONDS = 60.0
_IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "ip"  # hosts have a PATH of their own


@dataclass(frozen=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class User:
    """``capabilities``: all that the user has, as setpriv spells them."""

    uid: int
    gid: int
    capabilities: tuple[str, ...] = ()


class Lan:
    """Some networks, and the hosts on them. ``with`` it: on the way out every host is ended and every namespace removed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._tag = f"cr{secrets.token_hex(3)}"
        self._switch = f"{self._tag}-switch"
        self._networks = {name: f"10.99.{number}" for number, name in enumerate(networks)}
        self._hosts: list[Host] = []

    def __enter__(self) -> Lan:
        ip("netns", "add", self._switch)
        for number in range(len(self._networks)):
            ip("-n", self._switch, "link", "add", f"br{number}", "type", "bridge")
            ip("-n", self._switch, "link", "set", f"br{number}", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.end()
        for namespace in (*(host.namespace for host in self._hosts), self._switch):
            ip("netns", "del", namespace)

    def host(self, name: str, networks: Sequence[str]) -> Host:
        number = len(self._hosts) + 2
        namespace = f"{self._tag}-{name}"
        ip("netns", "add", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        addresses = {}
        for order, network in enumerate(networks):
            bridge = list(self._networks).index(network)
            mine, theirs = f"eth{order}", f"p{number}x{bridge}"
            ip("-n", namespace, "link", "add", mine, "type", "veth", "peer", "name", theirs, "netns", self._switch)
            ip("-n", self._switch, "link", "set", theirs, "master", f"br{bridge}", "up")
            addresses[network] = f"{self._networks[network]}.{number}"
            ip("-n", namespace, "address", "add", f"{addresses[network]}/24", "dev", mine)
            ip("-n", namespace, "link", "set", mine, "up")
        # Programs ask the kernel which address faces the world. Nobody is there to forward anything.
        ip("-n", namespace, "route", "add", "default", "via", f"{self._networks[networks[0]]}.1")
        host = Host(name, namespace, addresses, self)
        self._hosts.append(host)
        return host

    def names_for(self, host: Host) -> str:
        """What /etc/hosts of ``host`` says: those with whom it shares a network."""
        lines = ["127.0.0.1 localhost"]
        for other in self._hosts:
            shared = [network for network in host.addresses if network in other.addresses]
            if shared:
                lines.append(f"{other.addresses[shared[0]]} {other.name}")
        return "\n".join(lines) + "\n"


@dataclass
class Host:
    name: str
    namespace: str
    addresses: Mapping[str, str]
    lan: Lan
    log: Path | None = None
    _outer: subprocess.Popen[bytes] | None = None
    _user: User | None = None
    _environment: Mapping[str, str] = field(default_factory=dict)

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        user: User,
        mounts: Sequence[Mount] = (),
        shm: str = "64m",
    ) -> None:
        """Runs ``command`` as the host's only service. ``folder`` (of the host's own) gets its log."""
        assert self._outer is None or self._outer.poll() is not None, f"{self.name} runs already"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        (folder / "hosts").write_text(self.lan.names_for(self))
        # Nobody listens there, and that is known at once: gRPC asks for IPv6 too, which /etc/hosts does not have.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        script = "\n".join(
            (*_room(mounts, folder, shm), f"{shlex.join([*_as(user), *command])} & wait $!")
        )  # fmt: skip
        self._user, self._environment = user, environment
        with self.log.open("ab") as log:
            self._outer = subprocess.Popen(
                [
                    *(_IP, "netns", "exec", self.namespace),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-euc", script),
                ],
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(
        self, *command: str, seconds: float = SECONDS, user: User | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Another program on the host, which must be running."""
        first = self._first()
        enter = ("nsenter", f"--target={first.pid}", "--net", "--mount", "--pid", "--")
        return subprocess.run(
            [*enter, *_as(user or self._user or User(0, 0)), *command],
            env=dict(self._environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _first(self) -> psutil.Process:
        """The first process of the host's own; it lives as long as the host."""
        assert self._outer is not None
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert self._outer.poll() is None, f"{self.name} has ended: {self.tail()}"
            for child in psutil.Process(self._outer.pid).children():
                return child
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not start: {self.tail()}")

    def status(self) -> int | None:
        """Exit status of the service; None while it runs."""
        assert self._outer is not None
        return self._outer.poll()

    def end(self) -> None:
        """As when the machine loses its power."""
        if self._outer is not None and self._outer.poll() is None:
            for process in (*psutil.Process(self._outer.pid).children(), psutil.Process(self._outer.pid)):
                process.send_signal(signal.SIGKILL)  # with the first process of a process namespace all others end
            self._outer.wait(SECONDS)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log else ""


def _room(mounts: Sequence[Mount], folder: Path, shm: str) -> list[str]:
    """Shell commands that make the host's own file system out of this machine's. Nothing that is already there is changed."""
    lines = ["mount --make-rprivate /", "mount -t tmpfs -o mode=755 tmpfs /mnt"]
    moves = []
    for number, path in enumerate(_needed_below(CLOSED)):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(path))} /mnt/{number}"]
        moves += [f"mkdir -p {shlex.quote(str(path))}", f"mount --move /mnt/{number} {shlex.quote(str(path))}"]
    for number, mount in enumerate(mounts):
        lines += [f"mkdir /mnt/v{number}", f"mount --bind {shlex.quote(str(mount.source))} /mnt/v{number}"]
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro /mnt/v{number}")
        moves += [f"mkdir -p {shlex.quote(mount.target)}", f"mount --move /mnt/v{number} {shlex.quote(mount.target)}"]
    lines += [f"mount --bind {shlex.quote(str(folder / name))} /etc/{name}" for name in ("hosts", "resolv.conf")]
    if _needed_below(CLOSED):
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {CLOSED}")
    lines += [
        "mount -t tmpfs -o mode=755 tmpfs /srv",
        "mount -t tmpfs -o mode=755 tmpfs /opt",
        f"mount -t tmpfs -o mode=1777,size={shm} tmpfs /dev/shm",
        "mkdir -p /tmp/ray",
        "mount -t tmpfs -o mode=1777 tmpfs /tmp/ray",
    ]
    return lines + moves


def _needed_below(folder: str) -> list[Path]:
    needed = [Path(sys.base_prefix), CHECKOUT]
    return [path for path in needed if path.is_relative_to(folder)]


def _as(user: User) -> list[str]:
    bounds = ",".join(("-all", *(f"+{capability}" for capability in user.capabilities)))
    return [
        *("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", f"--bounding-set={bounds}", "--"),
    ]


def ip(*arguments: str) -> None:
    run = subprocess.run([_IP, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert run.returncode == 0, f"ip {' '.join(arguments)}: {run.stderr}"


def is_possible() -> bool:
    return os.geteuid() == 0
