"""What a job will take, asked of a process that imports torch, as nothing here does; it has bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import InvalidRequest
from service.settings import Settings
from workers.accelerators import Prices
from workers.plan import request_of
from workers.problems import Problem
from workers.spec import JobSpec

FOREIGN_CODE = ("custom",)  # kinds whose model is code of whoever submits
SAID = 300  # characters of what a process that died said last


@dataclass(frozen=True)
class Planned:
    """``plan`` as ``workers.plan`` gives it, or None and why there is none."""

    plan: Mapping[str, Any] | None
    message: str | None


def plan(spec: JobSpec, settings: Settings, bundle: Path | None = None) -> Planned:
    """Takes seconds. ``bundle``: with the job's code. Raises InvalidRequest when the data turns out to be unusable."""
    if spec.task.kind in FOREIGN_CODE and not settings.on_loopback:
        return Planned(
            None, "A custom task's code is not run where the API runs, unless that listens on loopback only."
        )
    answer = _asked(spec, settings, bundle)
    if "problem" in answer:
        raise InvalidRequest([Problem(answer["problem"]["field"], answer["problem"]["message"], None)])
    failed = answer.get("failed")
    return Planned(answer.get("plan"), f"The plan cannot be computed: {failed}." if failed else None)


def prices(settings: Settings) -> Prices:
    return Prices(
        accelerator=settings.accelerator,
        accelerator_hour=settings.accelerator_price,
        cpu_hour=settings.cpu_price,
        cpu_flops=settings.cpu_flops,
        efficiency=settings.efficiency,
        currency=settings.currency,
    )


def _asked(spec: JobSpec, settings: Settings, bundle: Path | None) -> Mapping[str, Any]:
    request = request_of(spec.model_dump_json(), prices(settings), settings.plan_memory, bundle)
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "workers.plan"],  # not a folder of that name where the service was started
            input=request,
            capture_output=True,
            timeout=settings.plan_timeout_seconds,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it takes longer than {settings.plan_timeout_seconds:g} s"}
    try:
        answer: Mapping[str, Any] = json.loads(ended.stdout)
    except ValueError:
        said = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][-SAID:]
        return {"failed": f"its process ended with status {ended.returncode} ({said or 'without a word'})"}
    return answer


def _environment() -> dict[str, str]:
    """Without this service's own settings, the secrets among them; one thread: nothing is computed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHAINRULE_")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
