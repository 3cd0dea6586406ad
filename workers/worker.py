"""TrainWorker: the actor that one rank of a job runs in. It trains in a thread, so that it can be asked how it is meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.jobfolder import JobFolder
from workers.outbox import Outbox, Report
from workers.reports import Outcome, Progress, ReasonCode, StopMode

SYSTEM_METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do. ``name`` is the attempt's, ``train`` the dotted name of the function: "module:function"."""

    name: str
    spec_json: str
    folder: str
    attempt: int
    generation: int
    rank: int
    world_size: int
    train: str = "workers.train:train"


@dataclass(frozen=True)
class Standing:
    """Whose a worker is (the attempt's name; None: nobody's yet), and where."""

    attempt: str | None
    node_id: str


@dataclass(frozen=True)
class Ready:
    """Answer of a worker that can begin. ``store``: where rank 0 hosts the group's store, as (host, port)."""

    pid: int
    node: str
    device: str
    store: tuple[str, int] | None


@dataclass(frozen=True)
class Failure:
    """An exception that ended a worker's training. ``collateral``: it tells of a peer's death, not of its own cause."""

    code: ReasonCode
    message: str
    traceback: str
    collateral: bool


@dataclass(frozen=True)
class Poll:
    state: Literal["preparing", "running", "done", "failed"]
    reports: Sequence[Report]
    progress: Progress | None
    outcome: Outcome | None = None
    failure: Failure | None = None


@dataclass
class _Training:
    """Shared between the training thread and the actor's methods."""

    state: Literal["preparing", "running", "done", "failed"] = "preparing"
    outcome: Outcome | None = None
    failure: Failure | None = None
    stop: StopMode | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class TrainWorker:
    """Methods are called by the controller; several may run at once."""

    def __init__(self, assignment: Assignment | None) -> None:
        """Without an assignment: a standby, which gets one later."""
        self._assignment: Assignment | None = None
        self._assigning = threading.Lock()
        self._outbox = Outbox()
        self._training = _Training()
        self._store: Any = None
        threads = "1"
        if assignment is not None:
            self.assign(assignment)
            threads = str(self._spec.workers.threads_per_worker)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = threads  # before torch is imported
        self._imports = threading.Thread(target=import_all, name="imports", daemon=True)
        self._imports.start()

    def standing(self) -> Standing:
        import ray

        owner = self._assignment.name if self._assignment is not None else None
        return Standing(owner, ray.get_runtime_context().get_node_id())

    def assign(self, assignment: Assignment) -> bool:
        """Makes this the worker of ``assignment``. False: it is somebody's already."""
        from workers import worker_log
        from workers.spec import JobSpec

        with self._assigning:
            if self._assignment is not None:
                return False
            self._assignment = assignment
        self._folder = JobFolder.at(assignment.folder)
        self._spec = JobSpec.model_validate_json(assignment.spec_json)
        worker_log.capture(self._folder.log_path(assignment.attempt, assignment.rank))
        return True

    def prepare(self) -> Ready:
        """Waits for the imports and, on rank 0, opens the store at which the group meets."""
        self._imports.join()
        import ray
        from torch.distributed import TCPStore

        from workers import parallel

        node = ray.util.get_node_ip_address()
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(node))
        device = parallel.choose_device(0, self._spec.workers.gpus)
        store = None
        assignment = self._assignment
        assert assignment is not None
        if assignment.rank == 0 and assignment.world_size > 1:
            # A store that opens its port itself listens on every interface.
            family = socket.AF_INET6 if ":" in node else socket.AF_INET
            with socket.create_server((node, 0), family=family) as listener:
                port: int = listener.getsockname()[1]
                self._store = TCPStore(
                    node, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
                )
            store = (node, port)
        return Ready(os.getpid(), node, str(device), store)

    def begin(self, store: tuple[str, int] | None) -> None:
        """Starts training in a thread of its own and returns."""
        self._training.state = "running"
        threading.Thread(target=self._train, args=(store,), name="train", daemon=True).start()
        threading.Thread(target=self._system_metrics, name="system-metrics", daemon=True).start()

    def poll(self, acknowledged: int) -> Poll:
        # The state is read first: what was reported before a run ended is then surely in the outbox.
        training = self._training
        state, outcome, failure = training.state, training.outcome, training.failure
        return Poll(state, self._outbox.after(acknowledged), self._outbox.latest_progress, outcome, failure)

    def ended(self) -> None:
        """Returns when training has ended. Waiting for it, the controller hears of an end or a death at once, without asking often."""
        self._training.ended.wait()

    def stop(self, mode: StopMode) -> None:
        self._training.stop = mode

    def _train(self, store: tuple[str, int] | None) -> None:
        from workers import parallel

        training = self._training
        try:
            training.outcome = self._trained(store)
            training.state = "done"
        except BaseException as error:  # sys.exit in a user's code too: the worker itself must live to tell
            traceback.print_exc()
            training.failure = describe(error)
            training.state = "failed"
        finally:
            training.ended.set()
        if training.state == "done":
            parallel.destroy_process_group()

    def _trained(self, store: tuple[str, int] | None) -> Outcome:
        from workers import parallel
        from workers.train import RunContext

        assignment = self._assignment
        assert assignment is not None
        device = parallel.choose_device(0, self._spec.workers.gpus)
        if assignment.world_size > 1:
            parallel.init_process_group(assignment.rank, assignment.world_size, self._join(store), device)
        context = RunContext(
            rank=assignment.rank,
            world_size=assignment.world_size,
            local_rank=0,
            device=device,
            reporter=self._outbox,
            checkpoints=self._folder.checkpoints_root,
            model_folder=self._folder.model_path,
            stop_requested=lambda: self._training.stop,
        )
        outcome: Outcome = _function(assignment.train)(self._spec, context)
        return outcome

    def _join(self, store: tuple[str, int] | None) -> Any:
        from datetime import timedelta

        from torch.distributed import TCPStore

        if self._store is not None:
            return self._store
        assert store is not None
        return TCPStore(store[0], store[1], is_master=False, timeout=timedelta(seconds=60))

    def _system_metrics(self) -> None:
        """Processor and memory of this process, and its accelerator's, under the step reached."""
        import psutil

        assert self._assignment is not None
        rank = self._assignment.rank
        process = psutil.Process()
        process.cpu_percent()
        while not self._training.ended.wait(SYSTEM_METRICS_SECONDS):
            progress = self._outbox.latest_progress
            values = {"cpu_percent": process.cpu_percent(), "memory_bytes": float(process.memory_info().rss)}
            values |= gpu_metrics(self._spec.workers.gpus)
            named = {f"system/rank{rank}/{name}": value for name, value in values.items()}
            self._outbox.metrics(progress.step if progress else 0, named, time.time())


def import_all() -> None:
    """What training imports sooner or later, all of it before the group meets: two seconds in which nobody has to wait for a peer."""
    import importlib

    from workers.tasks import FACTORIES

    for factory in FACTORIES.values():
        importlib.import_module(factory.partition(":")[0])


def describe(error: BaseException) -> Failure:
    """Whose matter an exception is, in a sentence, with its traceback."""
    import torch
    import torch.distributed as dist

    from workers.checkpoints import CheckpointError
    from workers.tasks.base import BadDataError

    text = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    collateral = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in ("gloo", "Connection closed by peer"))
    )
    code = ReasonCode.USER_ERROR
    if isinstance(error, BadDataError):
        code, said = ReasonCode.BAD_DATA, str(error)
    elif isinstance(error, MemoryError | torch.OutOfMemoryError):
        code = ReasonCode.OUT_OF_MEMORY
    elif isinstance(error, CheckpointError):
        code, said = ReasonCode.CHECKPOINT_FAILED, str(error)
    elif isinstance(error, SystemExit):
        said = f"the code called exit({error.code}) before the training was done"
    return Failure(code, said, text, collateral)


def interface_of(address: str) -> str:
    """Name of the network interface that has ``address``; gloo would else guess by the host's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address == address for entry in addresses):
            return name
    return "lo" if address.startswith("127.") else ""


def gpu_metrics(gpus: float) -> Mapping[str, float]:
    """Utilisation and memory of the first accelerator of this worker; empty without one."""
    if gpus <= 0:
        return {}
    import pynvml

    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        rates, memory = pynvml.nvmlDeviceGetUtilizationRates(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    except (pynvml.NVMLError, ValueError):
        return {}
    return {"gpu_utilisation": float(rates.gpu), "gpu_memory_bytes": float(memory.used)}


def _function(dotted: str) -> Any:
    import importlib

    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
