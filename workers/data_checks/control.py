"""A controller's look at the data before it takes workers: by a child process, whose end it need not wait for. Without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from workers.acting import Acting
from workers.data_checks.run import to_be_checked
from workers.data_checks.telling import REPORT, tell, unchecked
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.reports import Outcome, ReasonCode
from workers.spec import JobSpec

GIVE_UP_SECONDS = 30.0  # reading and looking, together
SAID = 300  # characters of what a process that died said last


class DataControl:
    """The result is kept in the job's folder, so that no later attempt looks again."""

    def __init__(
        self,
        spec: JobSpec,
        folder: JobFolder,
        ledger: Ledger,
        acting: Acting,
        *,
        look: bool,
        seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        """``acting``: what is to become of a job with critical findings. ``look``: workers may still be taken; else only what is known already
        counts. ``seconds``: after which the job goes on without."""
        self._spec, self._folder, self._ledger = spec, folder, ledger
        self._acting, self._look, self._seconds = acting, look, seconds
        self._report: Mapping[str, Any] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self.pending = False
        known = folder.read_document(REPORT)
        if known is not None:
            ledger.know_data(known["findings"])
        elif look and to_be_checked(spec):
            self._start()

    def outcome(self) -> Outcome | None:
        """Takes the report when it is there. An Outcome when training is impossible."""
        report = self._report
        if not self.pending or report is None:
            return self._critical()
        self.pending = False
        if report["problem"] is not None:
            field, message = report["problem"]
            self._ledger.tell(
                "error",
                "data.unusable",
                f"The data cannot be used. {field}: {message}.",
                {"field": field, "message": message},
            )
            return Outcome(ReasonCode.BAD_DATA, f"{field}: {message}", {"field": field})
        self._folder.write_document(REPORT, report)
        tell(self._ledger.tell, report, time.monotonic() - self._started_at)
        self._ledger.know_data(report["findings"])
        return self._critical()

    def _critical(self) -> Outcome | None:
        """While no worker was taken. A controller may have died between keeping the report and ending the job."""
        if not self._look or self.pending:
            return None
        self._look = False
        return self._acting.stops(self._ledger.data_findings, "before the first step")

    def end(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.kill()

    # --- the child ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.pending = True
        self._started_at = time.monotonic()
        # -P: not a package of that name in the folder where Ray started this process.
        command = [sys.executable, "-P", "-m", "workers.data_checks"]
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen(command, env=_environment(), stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:  # no memory, no room for another process
            self._report = unchecked(f"no process for it could be started: {error.strerror}")
            return
        threading.Thread(target=self._listen, args=(self._child,), name="data checks", daemon=True).start()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        try:
            answer, said = child.communicate(self._spec.model_dump_json().encode(), timeout=self._seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            self._report = unchecked(f"reading it takes longer than {self._seconds:.0f} s")
            child.communicate()  # which may take its time, where a file system does not answer: nobody waits for that
            return
        try:
            self._report = json.loads(answer)
        except ValueError:
            last = said.decode(errors="replace").strip().rpartition("\n")[2][-SAID:]
            self._report = unchecked(f"its process ended with status {child.returncode} ({last or 'without a word'})")


def _environment() -> dict[str, str]:
    """Modules are looked for where this process finds its own; one thread, because workers of others are at work here."""
    found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return dict(os.environ) | found | {"USE_TORCH": "0", "USE_TF": "0", "HF_DATASETS_OFFLINE": "1"}
