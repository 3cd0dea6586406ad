"""A look at data in a process of its own: a job's JSON comes on stdin, a report's goes to stdout."""

from __future__ import annotations

import json
import os
import resource
import sys

import psutil

from workers.data_checks.run import check
from workers.spec import JobSpec

MEMORY = 0.5  # of what is free when it begins


def main() -> int:
    own_memory_only()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what libraries print is no part of it
        report = check(JobSpec.model_validate_json(sys.stdin.buffer.read()))
        json.dump(report.document(), answer)
    return 0


def own_memory_only() -> None:
    """What does not fit must end this process, and neither the controller nor a worker beside it."""
    limit = int(MEMORY * psutil.virtual_memory().available) + psutil.Process().memory_info().vms
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:  # not Linux, or not ours to say
        pass


if __name__ == "__main__":
    raise SystemExit(main())
