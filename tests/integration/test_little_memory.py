"""Memory runs out on one worker of two: both go on with smaller microbatches."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.groups import DIGITS
from workers.reports import Outcome, ReasonCode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


def train_on_little(spec: Any, context: Any) -> Outcome:
    """One of the two processes is allowed too little for its share of a whole batch."""
    from tests.distributed.test_out_of_memory import Hungry
    from tests.distributed.toys import Toy
    from workers.train import run

    task = Hungry(Toy(samples=64, evaluation_samples=0), 8_000_000)
    try:
        context.model_folder.with_name("limited").mkdir(parents=True)
    except FileExistsError:
        return run(task, spec, context)
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    limit = int(found[1]) * 1024 + (750 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return run(task, spec, context)


def test_both_halve_their_microbatches_and_nothing_else_changes(groups: Any) -> None:
    training = {"steps": 2, "batch_size": 32}
    group = groups(
        DIGITS | {"training": {**training, "microbatch": "auto"}},
        train="tests.integration.test_little_memory:train_on_little",
    )
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    halved = group.events("memory.microbatch_halved")
    assert [event.data["accumulate"] for event in halved] == [2]
    assert [event.type for event in seen.events].count("worker.lost") == 0
    undisturbed = groups(DIGITS | {"training": training}, train="tests.integration.test_little_memory:train_freely")
    undisturbed.finished()
    losses = [one.folder.series(["train/loss"])["train/loss"].values for one in (group, undisturbed)]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def train_freely(spec: Any, context: Any) -> Outcome:
    from tests.distributed.test_out_of_memory import Hungry
    from tests.distributed.toys import Toy
    from workers.train import run

    return run(Hungry(Toy(samples=64, evaluation_samples=0), 8_000_000), spec, context)
