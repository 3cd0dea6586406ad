"""What a script finds around it: the variables that torchrun would set, where it meets the others, and the folder in which it runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from workers.kinds.scripts import ScriptTask
from workers.membership import Membership

MEET_SECONDS = 60.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SITE = Path(__file__).with_name("site")


class CutError(Exception):
    """The group was let go."""


@dataclass(frozen=True)
class Seat:
    """Where one worker of the group is. ``devices``: accelerators that it was given."""

    machine: str
    devices: tuple[str, ...] = ()

    @staticmethod
    def here(gpus: float) -> Seat:
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
        return Seat(f"{socket.gethostname()}/{boot}", tuple(filter(None, seen.split(","))))


class Meeting:
    """The store at which a group's workers meet, and their scripts after them: it is torchrun's "agent store"."""

    def __init__(self, membership: Membership, cut: Callable[[], bool]) -> None:
        self._cut = cut
        self._prefix = f"chainrule/{membership.generation}"
        self._rank, self._size = membership.rank, membership.world_size
        wait = timedelta(seconds=MEET_SECONDS)
        if isinstance(membership.store, tuple):
            self.address, port = membership.store
            self._store = TCPStore(self.address, port, is_master=False, wait_for_workers=False, timeout=wait)
        else:
            self.address = "127.0.0.1"
            self._store = TCPStore(self.address, 0, is_master=True, wait_for_workers=False, timeout=wait)
        self.port: int = self._store.port

    def seats(self, own: Seat) -> list[Seat]:
        """Of all workers, by rank. Raises CutError, TimeoutError."""
        self.say(f"seat/{self._rank}", json.dumps(asdict(own)))
        told = [json.loads(self.hear(f"seat/{rank}")) for rank in range(self._size)]
        return [Seat(each["machine"], tuple(each["devices"])) for each in told]

    def say(self, key: str, value: str) -> None:
        self._store.set(f"{self._prefix}/{key}", value)

    def hear(self, key: str) -> str:
        deadline = time.monotonic() + MEET_SECONDS
        while not self._store.check([f"{self._prefix}/{key}"]):
            if self._cut():
                raise CutError
            if time.monotonic() > deadline:
                raise TimeoutError(f"no word of {key} from another worker for {MEET_SECONDS:.0f} s")
            time.sleep(0.02)
        return self._store.get(f"{self._prefix}/{key}").decode()


def launch_variables(rank: int, seats: Sequence[Seat], meeting: Meeting, run_id: str, restarts: int) -> dict[str, str]:
    """As torchrun sets them. Workers on one machine, of at most one accelerator each, share it as processes of one node; whoever has more is a
    node of its own."""
    one_each = all(len(seat.devices) <= 1 for seat in seats)
    nodes: dict[str, list[int]] = {}
    for other, seat in enumerate(seats):
        nodes.setdefault(seat.machine if one_each else f"rank {other}", []).append(other)
    group = next(index for index, ranks in enumerate(nodes.values()) if rank in ranks)
    mates = list(nodes.values())[group]
    devices = [device for mate in (mates if one_each else [rank]) for device in seats[mate].devices]
    size = str(len(seats))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": size,
        "LOCAL_RANK": str(mates.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(mates)),
        "GROUP_RANK": str(group),
        "GROUP_WORLD_SIZE": str(len(nodes)),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": size,
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(max(restarts, 100)),
        **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}),
    }


def command(task: ScriptTask, python: str, folder: Path) -> list[str]:
    start = ["-m", task.module] if task.module else [str(folder / (task.entry or ""))]
    return [python, *start, *map(str, task.arguments)]


def python_path(folder: Path | None, before: str | None) -> str:
    """``folder``: that of a module which is run by its name; a file's own folder Python finds itself."""
    return os.pathsep.join([str(SITE), *([str(folder)] if folder else []), *([before] if before else [])])


def lay_out(task: ScriptTask, job_folder: Path, name: str = "work") -> Path:
    """The folder in which the script runs: the code's entries as links, and its output folder, which is the job's own and keeps what is in it."""
    folder, code, outputs = job_folder / name, Path(task.code.path), job_folder / "outputs"
    outputs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(
        folder, ignore_errors=True
    )  # links, but for what an earlier start has written beside its output folder
    folder.mkdir(parents=True)
    first, *rest = Path(task.output).parts
    if rest:
        (folder / first).mkdir()
        (folder / task.output).parent.mkdir(parents=True, exist_ok=True)
    (folder / task.output).symlink_to(outputs)
    for entry in code.iterdir():
        if not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry.resolve())
    return folder


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without those that are about itself."""
    return {name: value for name, value in variables.items() if not name.startswith(("RAY_", "TORCHELASTIC_"))}
