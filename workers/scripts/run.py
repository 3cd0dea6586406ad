"""One worker's part of a script job: it starts the script, watches it, and says how it ended."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from workers.artifacts import ArtifactError
from workers.kinds.scripts import ScriptTask
from workers.membership import Membership, Work
from workers.process_group import broken_by_peer
from workers.reports import Level, Outcome, ReasonCode, StopMode
from workers.run_state import RunContext
from workers.scripts import surroundings
from workers.scripts.ending import ScriptFailedError, failure_of, lost_a_peer, oom_kills
from workers.scripts.observed import Observed
from workers.scripts.outputs import Outputs
from workers.scripts.process import End, ScriptProcess
from workers.scripts.surroundings import CutError, Meeting, Seat
from workers.spec import JobSpec

LOOK_SECONDS = 0.1
KEEP_SECONDS = 30.0
# For which a script's failure may be the consequence of another worker's loss, of which the controller hears first.
OWN_FAULT_SECONDS, PEER_FAULT_SECONDS = 1.0, 6.0


def run_script(spec: JobSpec, context: RunContext) -> Outcome:
    """Raises ScriptFailedError when the script does not end well, DismissedError, GroupBrokenError, OSError."""
    return ScriptRun(spec, context).run()


class ScriptRun:
    def __init__(self, spec: JobSpec, context: RunContext) -> None:
        assert isinstance(spec.task, ScriptTask)
        assert context.code is not None
        self.code = context.code
        self.spec, self.task, self.context, self.link = spec, spec.task, context, context.link
        self.job_folder = context.model_folder.parent.absolute()
        self.outputs = Outputs(self.job_folder / "outputs", context.artifacts_folder or self.job_folder / "artifacts")
        self.rank = 0
        self.cut = False

    def run(self) -> Outcome:
        """Generation after generation: when another worker is lost, the scripts of all are started again."""
        broken: str | None = None
        while True:
            membership = self.link.next_group(None, broken)
            self.rank, self.cut = membership.rank, False
            self.link.joining(self._let_go)
            self.link.at(Work.JOIN, 0)
            try:
                return self.start(membership)
            except CutError:
                broken = "another worker was lost"
            except Exception as error:
                if not broken_by_peer(error):
                    raise
                broken = f"{type(error).__name__}: {error}"

    def _let_go(self) -> None:
        self.cut = True

    def start(self, membership: Membership) -> Outcome:
        observed = Observed(self.spec, self.context, tells=self.rank == 0)
        try:
            folder, variables = self.prepare(membership)
            self.link.at(Work.DATA, 0)
            killed_before = oom_kills()
            script = ScriptProcess(
                surroundings.command(self.task, sys.executable, folder), variables | observed.variables, folder, show
            )
            try:
                self.announce(membership, script, folder)
                end = self.follow(script, observed)
            finally:
                script.close()
                self.link.script_pid = None
            observed.finish()
            return self.concluded(end, script, observed, membership.world_size, oom_kills() - killed_before)
        finally:
            observed.close()

    def prepare(self, membership: Membership) -> tuple[Path, dict[str, str]]:
        """The folder in which the script runs, and its variables. Rank 0 lays the folder out, the others wait for it."""
        variables = surroundings.clean(os.environ)
        if membership.store is None and membership.world_size > 1:  # under torchrun, which has said everything
            folder = surroundings.lay_out(self.task, self.code.folder, self.job_folder, f"work-{self.rank}")
        else:
            meeting = Meeting(membership, lambda: self.cut)
            self.meeting = meeting  # others meet there as long as this lives
            if self.rank == 0:
                meeting.say("folder", str(surroundings.lay_out(self.task, self.code.folder, self.job_folder)))
            folder = Path(meeting.hear("folder"))
            seats = meeting.seats(Seat.here(self.spec.workers.gpus))
            variables |= surroundings.launch_variables(
                self.rank, seats, meeting, self.job_folder.name, membership.generation - 1
            )
        threads = str(self.spec.workers.threads_per_worker)
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        variables |= {
            "PYTHONUNBUFFERED": "1",
            "CHAINRULE_JOB_ID": self.job_folder.name,
            "CHAINRULE_OUTPUT": str(self.job_folder / "outputs"),
            **membership.environment,
            **self.task.environment,
        }
        # A file's own folder Python finds itself; of a module that is run by its name, it is where it runs.
        variables["PYTHONPATH"] = surroundings.python_path(self.code.search[1:], variables.get("PYTHONPATH"))
        return folder, variables

    def announce(self, membership: Membership, script: ScriptProcess, folder: Path) -> None:
        self.link.script_pid = script.pid
        self.tell(
            "script.started",
            f"Rank {self.rank}: {self.task.entry or self.task.module} runs as process {script.pid}"
            + (f", started again (restart {membership.generation - 1})." if membership.generation > 1 else "."),
            {"rank": self.rank, "pid": script.pid, "folder": str(folder), "restarts": membership.generation - 1},
        )

    def follow(self, script: ScriptProcess, observed: Observed) -> End:
        """Until the script has ended. Raises CutError when the group is let go; the script is killed then."""
        stop_at: float | None = None
        kept_at = time.monotonic()
        alive = (0.0, -1)
        while True:
            end = script.wait(LOOK_SECONDS)
            if end is not None:
                return end
            now = time.monotonic()
            if self.cut:
                script.kill()
                raise CutError
            if (script.output_at, observed.beats) != alive:
                alive = (script.output_at, observed.beats)
                self.link.at(Work.SCRIPT, observed.step)
            if stop_at is None and self.link.stop_requested() is not None:
                stop_at = now + self.task.grace_seconds
                self.tell(
                    "script.stopping", f"Rank {self.rank}: the script was sent SIGTERM, as asked.", {"rank": self.rank}
                )
                script.terminate()
            if stop_at is not None and now > stop_at:
                script.kill()
            observed.judge_when_due()
            if now - kept_at > KEEP_SECONDS:
                self.keep(observed.step, last=False)
                kept_at = now

    # --- the end ------------------------------------------------------------------------------------------------------

    def concluded(self, end: End, script: ScriptProcess, observed: Observed, world_size: int, killed: int) -> Outcome:
        self.link.at(Work.FINISH, observed.step)
        self.keep(observed.step, last=True)
        mode = self.link.stop_requested()
        if mode is not None:
            return self.outcome(*stopped(mode, end), observed, end)
        if end.exit_code == 0:
            steps = f" after {observed.step:,} optimizer steps" if observed.step else ""
            return self.outcome(ReasonCode.COMPLETED, f"the script ended with exit code 0{steps}", observed, end)
        failure = failure_of(end, list(script.errors.tail), killed)
        if world_size > 1:
            self.wait_for_the_guilty(failure, list(script.errors.tail))
        observed.judge(final=True)
        raise failure

    def keep(self, step: int, *, last: bool) -> None:
        """What does not work here is told; it is no fault of the script."""
        if self.rank != 0:
            return
        try:
            kept = self.outputs.keep_all(step) if last else self.outputs.keep_new(step)
        except (OSError, ArtifactError) as error:
            said = f"What the script has written could not be kept: {error}"
            self.tell("script.outputs_failed", said, {"step": step}, level="warning")
            return
        if kept.left_out and last:
            files = ", ".join(kept.left_out[:5]) + (" and others" if len(kept.left_out) > 5 else "")
            said = f"{len(kept.names)} files of the script are artifacts. Too large, or too many: {files}; they are in {self.outputs.folder}."
            self.tell("script.outputs", said, {"step": step, "left_out": list(kept.left_out)})

    def wait_for_the_guilty(self, failure: ScriptFailedError, errors: list[str]) -> None:
        """A script whose peer is gone fails too, often first. Raises CutError when a worker was lost, which is nobody's fault here."""
        patience = PEER_FAULT_SECONDS if lost_a_peer(errors) else OWN_FAULT_SECONDS
        while time.time() < failure.at + patience:
            if self.cut:
                raise CutError
            if self.link.stop_requested() is not None:
                return
            time.sleep(0.02)

    def outcome(self, code: ReasonCode, message: str, observed: Observed, end: End) -> Outcome:
        health = observed.judge(final=True)
        detail: dict[str, Any] = {
            "steps": observed.step,
            "metrics": observed.latest,
            "health": health,
            "model": None,
            "exit_code": end.exit_code,
            "signal": end.signal,
            "overhead": observed.overhead,
        }
        self.tell("training.finished", f"Rank {self.rank}: {message}.", {"rank": self.rank, "step": observed.step})
        return Outcome(code, message, detail)

    def tell(self, type: str, message: str, data: dict[str, Any], level: Level = "info") -> None:
        self.context.reporter.event(level, type, message, data)


def stopped(mode: StopMode, end: End) -> tuple[ReasonCode, str]:
    how = f"with exit code {end.exit_code}" if end.signal is None else f"by signal {end.signal}"
    if mode is StopMode.PAUSE:
        return ReasonCode.PAUSED, f"paused: the script was sent SIGTERM and ended {how}"
    return ReasonCode.CANCELLED, f"stopped on request: the script was sent SIGTERM and ended {how}"


def show(line: str) -> None:
    """A line of the script's output, into this worker's log."""
    sys.stdout.write(f"{line}\n")
