"""What a job will take, before anything is taken: ``python -m workers.plan`` reads a request on stdin and writes the plan on stdout, both JSON.

A process of its own, with bounded memory, because it imports torch and builds the model of whoever asks.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.accelerators import ACCELERATORS, CONTEXT_BYTES, OPERATION_SECONDS, Prices
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, code_of

if TYPE_CHECKING:
    from workers.plan_memory import Layout
    from workers.simulation import Simulation
    from workers.user_code import UserCode

TOO_LARGE = "its model and data take more memory than a plan may have (CHAINRULE_PLAN_MEMORY)"
BATCHES_AHEAD = 3  # read while others are computed (workers/batches.py)


def plan(spec: JobSpec, prices: Prices, code: UserCode | None = None) -> dict[str, Any]:
    """``code``: the user's own, for kinds that have any. Raises BadDataError, and whatever a model or a loss raises."""
    import psutil

    from workers.batches import plan_of
    from workers.plan_memory import Layout, advice, memory, row, table
    from workers.simulation import simulate
    from workers.tasks import build_task

    task = build_task(spec.task, spec.training.seed, code)
    datasets = task.datasets()
    order = plan_of(spec, len(datasets.train))
    workers, training = spec.workers, spec.training
    asked = Layout(workers.strategy, workers.fewest, training.accumulate, training.batch_size)
    before = int(psutil.Process().memory_info().rss)
    found = simulate(task, datasets.train, spec, asked.microbatch)
    # Python, libraries and the data, as a worker has them; a step on shapes adds only what it imports.
    held = before if found.real else int(psutil.Process().memory_info().rss)
    on_cpu = workers.gpus <= 0
    batch = found.at(asked.microbatch, lambda step: step.batch)
    process = held + BATCHES_AHEAD * round(batch) if on_cpu else CONTEXT_BYTES
    limit, limit_name = _limit(spec, prices)
    told = advice(found, asked, process, limit, limit_name)
    return {
        "parameters": found.parameters,
        "trained_parameters": found.trained,
        "samples": order.samples,
        "steps": order.steps,
        "limit": limit,
        "limit_name": limit_name or None,
        **row(asked, memory(found, asked, process), limit),
        "layouts": table(found, asked, process, limit)[1:],
        **_time(spec, found, asked, order.steps, prices),
        "advice": told,
        "assumptions": _assumptions(spec, found, prices),
    }


def _limit(spec: JobSpec, prices: Prices) -> tuple[int | None, str]:
    if spec.workers.gpus > 0:
        known = ACCELERATORS.get(prices.accelerator or "")
        return (known.memory, f"the memory of one {prices.accelerator}") if known else (None, "")
    return (spec.workers.memory, "workers.memory") if spec.workers.memory else (None, "")


def _time(spec: JobSpec, found: Simulation, asked: Layout, steps: int, prices: Prices) -> dict[str, Any]:
    """FLOPs of a step are those of all workers, forward and backward; seconds are of the slowest one, without communication."""
    per_worker = found.at(asked.microbatch, lambda step: step.flops) * asked.accumulate
    rate = _rate(spec, prices)
    computing = per_worker / (rate * prices.efficiency) if rate else None
    starting = asked.accumulate * found.full.operations * OPERATION_SECONDS
    seconds = None if computing is None else computing + starting
    hourly = _hourly(spec, prices)
    total = None if seconds is None else seconds * steps
    return {
        "flops_per_step": round(found.at(1, lambda step: step.flops) * asked.batch_size),
        "seconds_per_step": seconds,
        "seconds": total,
        "price": None if total is None or hourly is None else total / 3600 * hourly * asked.workers,
        "currency": prices.currency,
    }


def _rate(spec: JobSpec, prices: Prices) -> float | None:
    """Declared FLOP/s of one worker."""
    if spec.workers.gpus <= 0:
        return prices.cpu_flops * min(spec.workers.threads_per_worker, max(1.0, spec.workers.cpus))
    known = ACCELERATORS.get(prices.accelerator or "")
    return (known.bf16 if spec.training.precision == "bf16" else known.fp32) if known else None


def _hourly(spec: JobSpec, prices: Prices) -> float | None:
    """Of one worker."""
    if spec.workers.gpus > 0 and prices.accelerator_hour is None:
        return None
    if prices.cpu_hour is None and (spec.workers.gpus <= 0 or prices.accelerator_hour is None):
        return None
    return spec.workers.cpus * (prices.cpu_hour or 0.0) + spec.workers.gpus * (prices.accelerator_hour or 0.0)


def _assumptions(spec: JobSpec, found: Simulation, prices: Prices) -> list[str]:
    device = prices.accelerator if spec.workers.gpus > 0 else "processors"
    rate = _rate(spec, prices)
    said = [
        f"time: FLOPs at {prices.efficiency:.0%} of the {rate / 1e12:.3g} TFLOP/s declared for the {device} of a worker, and "
        f"{OPERATION_SECONDS * 1e6:.0f} microseconds to start each operation; without communication, evaluation and checkpoints"
        if rate
        else "time: unknown, because CHAINRULE_ACCELERATOR does not say which accelerators the cluster has",
        "memory: live tensors of a training step, counted on shapes; process is Python, libraries, data and batches read ahead",
    ]
    if _hourly(spec, prices) is None:
        said.append(
            "price: unknown, because no price an hour is set (CHAINRULE_CPU_PRICE, CHAINRULE_ACCELERATOR_PRICE)"
        )
    if found.real:
        said.append(
            f"memory and FLOPs are from real steps of {found.half.samples} and {found.full.samples} samples: the loss needs values, not only shapes"
        )
    return said


# --- the process ------------------------------------------------------------------------------------------------------


def main() -> int:
    """The answer has ``plan``, or ``problem`` {field, message} of the job's data, or ``failed``, a sentence."""
    request: Mapping[str, Any] = json.load(sys.stdin)
    _bound(int(request["memory"]))
    answers, sys.stdout = sys.stdout, sys.stderr  # what a model or a library prints is no part of the answer
    json.dump(_answer(request), answers)
    return 0


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    from workers.tasks import FACTORIES
    from workers.user_code import provide

    spec = JobSpec.model_validate_json(request["spec"])
    if spec.task.kind not in FACTORIES:
        return {"failed": f"what a {spec.task.kind} trains is known only when it runs"}
    code = code_of(spec)
    if code is not None and code.requirements:
        return {"failed": "its code requires packages that are installed on its workers only"}
    try:
        with tempfile.TemporaryDirectory() as place:
            provided = provide(code, request["bundle"], Path(place)) if code is not None else None
            return {"plan": plan(spec, Prices(**request["prices"]), provided)}
    except BadDataError as error:
        return {"problem": {"field": error.field, "message": error.message}}
    except ImportError as error:
        return {"failed": f"what trains is not installed where the API runs ({error})"}
    except Exception as error:  # of a user's model: the answer is for people
        from workers.memory import is_out_of_memory

        if is_out_of_memory(error):
            return {"failed": TOO_LARGE}
        return {"failed": f"{type(error).__name__}: {error}"[:2000]}


def _bound(size: int) -> None:
    """Of private memory, so that libraries that reserve addresses do not count."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def request_of(spec_json: str, prices: Prices, memory: int, bundle: Path | None = None) -> bytes:
    """What ``main`` reads. ``memory``: bytes that it may take."""
    named = None if bundle is None else str(bundle)
    return json.dumps({"spec": spec_json, "prices": asdict(prices), "memory": memory, "bundle": named}).encode()


if __name__ == "__main__":
    raise SystemExit(main())
