"""From the request to the first optimizer step done, against Ray Jobs running a TorchTrainer script on the same cluster.

Two workers, the same model and data. The service has its default of two standby workers, which wait with everything imported; Ray Jobs
has nothing like it and starts new processes. Between the sides the machine is left alone until new standbys are there. Clock
times of one machine; rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import compare, record
from benchmarks.stack import Stack, stack

SETTLE_SECONDS = 15.0

SPEC: dict[str, Any] = {
    "name": "first-step",
    "task": {"kind": "image_classification", "data": {"source": "digits"}, "model": {"architecture": "cnn"}},
    "training": {"steps": 5, "batch_size": 64},
    "workers": {"count": 2, "threads": 1},
}


def ours(running: Stack) -> float:
    posted_at = time.time()
    posted = running.client.create_job(SPEC)
    running.finish(posted["id"])
    (series,) = running.client.metrics(posted["id"], keys="train/loss")["data"]
    (first,) = (point for point in series["points"] if point["step"] == 1)
    return datetime.fromisoformat(first["timestamp"]).timestamp() - posted_at


def theirs(running: Stack, round_: int) -> float:
    from ray.job_submission import JobStatus, JobSubmissionClient

    job_file, stamp = running.folder / "peer.json", running.folder / f"stamp-{round_}"
    job_file.write_text(json.dumps(SPEC))
    script = Path(__file__).parent / "peers" / "ray_train_job.py"
    client = JobSubmissionClient(running.dashboard_url)
    posted_at = time.time()
    submitted = client.submit_job(
        entrypoint=f"{sys.executable} {script} {job_file} {stamp} {running.folder / f'peer-{round_}'}",
        runtime_env={"env_vars": {"RAY_TRAIN_V2_ENABLED": "1"}},
    )
    deadline = time.monotonic() + 300
    while (status := client.get_job_status(submitted)) not in (
        JobStatus.SUCCEEDED,
        JobStatus.FAILED,
        JobStatus.STOPPED,
    ):
        if time.monotonic() > deadline:
            raise TimeoutError(submitted)
        time.sleep(0.5)
    if status is not JobStatus.SUCCEEDED:
        raise RuntimeError(client.get_job_logs(submitted)[-3000:])
    return float(stamp.read_text()) - posted_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    pairs = []
    with stack() as running:
        for round_ in range(rounds + 1):
            time.sleep(SETTLE_SECONDS)
            first = ours(running)
            time.sleep(SETTLE_SECONDS)
            pairs.append((first, theirs(running, round_)))
    pairs = pairs[1:]  # the first round reads everything from disk
    record("first_step", {"POST to first step, 2 workers": compare([a for a, _ in pairs], [b for _, b in pairs])})


if __name__ == "__main__":
    main()
