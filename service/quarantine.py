"""The use-cases around samples that a job leaves out: which ones, since when, and asking a job that runs to change them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service import repairs
from service.database import Store
from service.errors import Conflict, InvalidRequest
from service.jobs import get_job
from service.values import Caller
from workers.jobfolder import JobFolder
from workers.problems import Problem, shorten
from workers.repair.requests import Request
from workers.sample_order import why_not_left_out
from workers.sources.naming import Name, names_of
from workers.spec import JobSpec, parse_spec
from workers.step_ledger import StepLedger, UnknownStepError

Sample = int | str  # an index in the training set, or a name as a step shows it


def listed(store: Store, caller: Caller, job_id: str, folder: JobFolder) -> dict[str, Any]:
    """As a document. Raises Conflict for a script."""
    ledger, spec = _known(store, caller, job_id, folder)
    out = ledger.left_out(None) if ledger is not None else tuple(sorted(spec.training.leave_out))
    acts = [act for act in ledger.acts(None) if act.leaves_out] if ledger is not None else []
    by = {sample: act for act in acts for sample in act.leaves_out or ()}
    name = names_of(spec, ledger.samples) if ledger is not None and ledger.samples is not None else None
    return {
        "job_id": job_id,
        "samples": ledger.samples if ledger is not None else None,
        "left_out": [
            {
                "sample": sample,
                "name": name(sample) if name is not None else None,
                "since_step": by[sample].step if sample in by else 0,
                "repair": by[sample].number if sample in by else None,
            }
            for sample in out
        ],
    }


def change(
    store: Store,
    caller: Caller,
    job_id: str,
    folder: JobFolder,
    requests: Path,
    *,
    leave_out: Sequence[Sample] = (),
    take_in: Sequence[Sample] = (),
) -> Request:
    """Asks the job to go on without, or again with, these. Raises InvalidRequest for samples that there are not, Conflict unless the job runs."""
    ledger, spec = _known(store, caller, job_id, folder)
    if ledger is None or ledger.samples is None:
        raise Conflict(f"{job_id} has not begun to train: which samples there are is not known yet", param="job_id")
    samples, out = ledger.samples, ledger.left_out(None)
    name = names_of(spec, samples)
    problems: list[Problem] = []
    wanted, again = (
        _indices(field, given, samples, name, problems)
        for field, given in (("leave_out", leave_out), ("take_in", take_in))
    )
    for place, sample in enumerate(again):
        if sample not in out and not problems:
            known = ", ".join(map(str, out[:10])) + (" and others" if len(out) > 10 else "")
            problems.append(
                Problem(f"take_in[{place}]", f"is not left out; left out are: {known or 'none'}", str(sample))
            )
    too_many = why_not_left_out(sorted({*out, *wanted} - {*again}), samples, spec.training.batch_size)
    if too_many is not None and not problems:
        problems.append(Problem("leave_out", too_many, f"{len(wanted)} samples"))
    if problems:
        raise InvalidRequest(problems)
    return repairs.steer(store, caller, job_id, requests, leave_out=wanted or None, take_in=again or None)


def _known(store: Store, caller: Caller, job_id: str, folder: JobFolder) -> tuple[StepLedger | None, JobSpec]:
    """The ledger is None of a job that has not begun."""
    job = get_job(store, caller, job_id)
    if job.spec["task"]["kind"] == "script":
        raise Conflict(f"{job_id} is a script, whose own loop decides which samples it takes", param="job_id")
    try:
        ledger = StepLedger(folder)
    except UnknownStepError:
        return None, parse_spec(dict(job.spec))
    return ledger, ledger.spec


def _indices(
    field: str, given: Sequence[Sample], samples: int, name: Name | None, problems: list[Problem]
) -> list[int]:
    """``problems``: what is wrong is added to them."""
    named = {} if name is None or all(isinstance(each, int) for each in given) else {name(i): i for i in range(samples)}
    found = []
    for place, each in enumerate(given):
        path = f"{field}[{place}]"
        if isinstance(each, int):
            if not 0 <= each < samples:
                problems.append(Problem(path, f"there is no such sample; allowed is 0 to {samples - 1}", str(each)))
            found.append(each)
        elif each in named:
            found.append(named[each])
        else:
            why = (
                "samples of this source have no names here; give their indices"
                if name is None
                else "no training sample is called so"
            )
            problems.append(Problem(path, f"{why}, 0 to {samples - 1}" if name is None else why, shorten(each)))
    return found
