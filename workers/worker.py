"""TrainWorker: the actor in which one worker of a job trains. It trains in a thread, so that it can be asked how it is meanwhile."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers.jobfolder import JobFolder
from workers.outbox import Outbox
from workers.reports import Outcome, ReasonCode, StopMode
from workers.worker_link import Failure, Poll, WorkerLink

SYSTEM_METRICS_SECONDS = 5.0
NEWS_SECONDS = 20.0  # after which a question for news is answered although there are none


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do. ``name`` is the attempt's, ``train`` the dotted name of the function: "module:function"."""

    name: str
    spec_json: str
    folder: str
    attempt: int
    number: int  # of this worker, counted within the attempt; names its log file
    checkpoints: str
    train: str = "workers.train:train"
    devices: Sequence[str] | None = None  # ids of the accelerators that it may see; None: it was told nothing
    bundle: str | None = None  # file with the job's code
    healthy_from: int = 0  # attempt from which on checkpoints count that are not healthy


@dataclass(frozen=True)
class Standing:
    """Whose a worker is (the attempt's name); None: nobody's yet."""

    attempt: str | None


@dataclass(frozen=True)
class Place:
    """Where a worker runs, which it says when it has begun."""

    pid: int
    node: str
    node_id: str
    device: str


class TrainWorker:
    """Methods are called by the controller; several may run at once."""

    def __init__(self, assignment: Assignment | None) -> None:
        """Without an assignment: a standby, which gets one later."""
        self._assignment: Assignment | None = None
        self._assigning = threading.Lock()
        self._changed = threading.Condition()
        self._outbox = Outbox()
        self._link = WorkerLink(self._changed)
        self._ended = threading.Event()
        self._stores: list[Any] = []
        threads = "1"
        if assignment is not None:
            self.assign(assignment)
            threads = str(self._spec.workers.threads_per_worker)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = threads  # before torch is imported
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
            "1"  # CUDA's own check fixes for good which devices a process sees
        )
        self._rehearsing = threading.Thread(target=_rehearse, name="rehearsal", daemon=True)
        self._rehearsing.start()

    def standing(self) -> Standing:
        return Standing(self._assignment.name if self._assignment is not None else None)

    def assign(self, assignment: Assignment) -> bool:
        """Makes this a worker of ``assignment``. False: it is somebody's already."""
        from workers import worker_log
        from workers.spec import JobSpec

        with self._assigning:
            if self._assignment is not None:
                return self._assignment == assignment
            self._assignment = assignment
        if assignment.devices is not None:
            see_only(assignment.devices)
        self._folder = JobFolder.at(assignment.folder)
        self._spec = JobSpec.model_validate_json(assignment.spec_json)
        worker_log.capture(self._folder.log_path(assignment.attempt, assignment.number))
        return True

    # --- asked by the controller --------------------------------------------------------------------------------------

    def begin(self) -> Place:
        """Builds the task and waits for a group to join, in a thread of its own; may be called again."""
        self._rehearsing.join()
        import ray

        from workers.process_group import choose_device

        node = ray.util.get_node_ip_address()
        with self._assigning:
            if self._link.state == "idle":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(node))
                self._link.now("building")
                threading.Thread(target=self._train, name="train", daemon=True).start()
                threading.Thread(target=self._system_metrics, name="system-metrics", daemon=True).start()
        device = choose_device(0, self._spec.workers.gpus)
        return Place(os.getpid(), node, ray.get_runtime_context().get_node_id(), str(device))

    def host_store(self) -> tuple[str, int]:
        """Opens a store at which a group can meet, as (host, port). It lives until the one after the next is opened."""
        import ray
        from torch.distributed import TCPStore

        node = ray.util.get_node_ip_address()
        # A store that opens its port itself listens on every interface.
        family = socket.AF_INET6 if ":" in node else socket.AF_INET
        with socket.create_server((node, 0), family=family) as listener:
            port: int = listener.getsockname()[1]
            store = TCPStore(node, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        self._stores = [*self._stores[-1:], store]
        return node, port

    def join(self, membership: Any) -> None:
        """The group that this worker waits for. One of an older generation, or a second time, is passed over."""
        self._link.give(membership)

    def break_group(self, generation: int) -> None:
        """Lets the group of ``generation`` go, whatever this worker waits for in it."""
        self._link.cut(generation)

    def regroup(self, generation: int) -> None:
        """Asks all workers of the group of ``generation``, by this one's vote, to leave it together after the step that is under way."""
        self._link.ask_to_regroup(generation)

    def stop(self, mode: StopMode) -> None:
        self._link.stop = mode

    def dismiss(self) -> None:
        self._link.give(None)

    def poll(self, acknowledged: int, told_through: int) -> Poll:
        """``told_through``: mark up to which the controller has what all workers measure."""
        self._link.told = max(self._link.told, told_through)
        # The state is read first: what was reported before a run ended is then surely in the outbox.
        seen = self._link.seen()
        return replace(seen, reports=self._outbox.after(acknowledged), progress=self._outbox.latest_progress)

    def news(self, version: int) -> int:
        """Returns when there is something to poll for that ``version`` did not have. Its failure is how a death is heard of at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._link.version != version, timeout=NEWS_SECONDS)
            return self._link.version

    def stacks(self) -> str:
        """What every Python thread of this process is doing."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for ident, frame in sys._current_frames().items():
            lines = "".join(traceback.format_stack(frame))
            parts.append(f"thread {names.get(ident, ident)}\n{lines}")
        return "\n".join(sorted(parts, key=lambda part: not part.startswith("thread train")))

    def script_stack(self) -> str:
        """What every Python thread of the script is doing."""
        from workers.stacks import read_stack

        pid = self._link.script_pid
        return "no script runs" if pid is None else read_stack(pid)

    # --- the thread that trains ---------------------------------------------------------------------------------------

    def _train(self) -> None:
        from workers.membership import DismissedError

        try:
            outcome = self._trained()
            self._link.now("done", outcome=outcome)
        except DismissedError:
            self._link.now("dismissed")
        except BaseException as error:  # sys.exit in a user's code too: the worker itself must live to tell
            failure = describe(error)
            if not failure.at:  # a script has printed its own
                traceback.print_exc()
            self._link.now("failed", failure=failure)
        finally:
            self._ended.set()

    def _trained(self) -> Outcome:
        from workers.acting import accepted
        from workers.membership import GENERATIONS
        from workers.process_group import choose_device
        from workers.spec import code_of
        from workers.train import RunContext
        from workers.user_code import provide

        assignment = self._assignment
        assert assignment is not None
        code = code_of(self._spec)
        context = RunContext(
            device=choose_device(0, self._spec.workers.gpus),
            reporter=self._outbox,
            link=self._link,
            checkpoints=assignment.checkpoints,
            model_folder=self._folder.model_path,
            code=provide(code, assignment.bundle, self._folder.code_path) if code is not None else None,
            artifacts_folder=self._folder.artifacts_path,
            requests=self._folder.requests_path,
            accepted=accepted(self._folder),
            healthy_before=assignment.healthy_from * GENERATIONS,
        )
        outcome: Outcome = _function(assignment.train)(self._spec, context)
        return outcome

    def _system_metrics(self) -> None:
        """Processor and memory of this process, and its accelerator's, under the step reached."""
        import psutil

        process = psutil.Process()
        process.cpu_percent()
        while not self._ended.wait(SYSTEM_METRICS_SECONDS):
            rank = self._link.rank
            if rank is None:
                continue
            values = {"cpu_percent": process.cpu_percent(), "memory_bytes": float(process.memory_info().rss)}
            values |= gpu_metrics(self._spec.workers.gpus)
            named = {f"system/rank{rank}/{name}": value for name, value in values.items()}
            self._outbox.metrics(self._link.activity_step, named, time.time())


def describe(error: BaseException) -> Failure:
    """Whose matter an exception is, in a sentence, with its traceback."""
    from workers.checkpoints import CheckpointError
    from workers.memory import is_out_of_memory
    from workers.scripts.ending import ScriptFailedError
    from workers.sources.problems import BadCodeError, BadDataError

    if isinstance(error, ScriptFailedError):
        return Failure(error.code, str(error), error.tail, error.at)

    text = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    said = "; ".join([said, *getattr(error, "__notes__", [])])
    code = ReasonCode.USER_ERROR
    if isinstance(error, BadCodeError):
        code, said = ReasonCode.BAD_CODE, str(error)
    elif isinstance(error, BadDataError):
        code, said = ReasonCode.BAD_DATA, str(error)
    elif is_out_of_memory(error):
        code = ReasonCode.OUT_OF_MEMORY
    elif isinstance(error, CheckpointError):
        code, said = ReasonCode.CHECKPOINT_FAILED, str(error)
    elif isinstance(error, SystemExit):
        said = f"the code called exit({error.code}) before the training was done"
    return Failure(code, said, text)


def interface_of(address: str) -> str:
    """Name of the network interface that has ``address``; gloo would else guess by the host's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address == address for entry in addresses):
            return name
    return "lo" if address.startswith("127.") else ""


def see_only(devices: Sequence[str]) -> None:
    """Shows this process just these accelerators; its first CUDA call must still be to come."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)


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


def _rehearse() -> None:
    from workers.rehearsal import rehearse

    rehearse()


def _function(dotted: str) -> Any:
    import importlib

    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
