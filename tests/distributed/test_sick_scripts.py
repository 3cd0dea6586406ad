"""Scripts that people write, made sick and unmodified otherwise: the right finding on each, and none on healthy ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.toys import Memory, context_in
from workers.membership import Alone
from workers.reports import Outcome, ReasonCode
from workers.scripts.run import run_script
from workers.spec import parse_spec
from workers.user_code import UserCode

pytestmark = pytest.mark.distributed

SCRIPTS = Path(__file__).parents[1] / "scripts"
KINDS = ("sick_bare_loop.py", "sick_lightning.py", "sick_trainer.py")
STEPS = 120


def run(folder: Path, entry: str, mood: str, **changes: Any) -> tuple[Outcome, Memory]:
    """As a job runs it, in a process of its own under the guard. Every step is measured: a test's steps are too short for a budget."""
    task = {
        "overhead_budget": 1.0,
        "kind": "script",
        "code": {"path": str(SCRIPTS)},
        "entry": entry,
        "arguments": [mood, str(STEPS)],
    }
    spec = parse_spec(
        {"name": mood.replace("_", "-"), "task": task | {"steps": STEPS} | changes, "workers": {"count": 1}}
    )
    memory = Memory()
    context = context_in(
        folder,
        memory,
        Alone(0, 1),
        code=UserCode(SCRIPTS, (SCRIPTS,)),
    )
    outcome = run_script(spec, context)
    assert outcome.code is ReasonCode.COMPLETED, outcome
    troubles = [
        event for event in memory.events if event[1] in ("facts.unknown", "probes.stopped", "script.unobserved")
    ]
    assert not troubles, troubles
    return outcome, memory


@pytest.mark.parametrize("entry", KINDS)
@pytest.mark.parametrize(
    ("mood", "codes"),
    [
        ("deep_sigmoid", {"vanishing_gradient"}),
        ("high_rate", {"lr_too_high", "exploding_gradient"}),
        ("dead_relu", {"dying_relu"}),
    ],
)
def test_a_sick_script_is_told_what_it_has(tmp_path: Path, entry: str, mood: str, codes: set[str]) -> None:
    outcome, _ = run(tmp_path, entry, mood)
    health = outcome.detail["health"]
    assert health["verdict"] == "critical", health
    assert health["findings"][0]["code"] in codes, health["findings"]


@pytest.mark.parametrize("entry", KINDS)
def test_a_healthy_script_is_left_in_peace(tmp_path: Path, entry: str) -> None:
    outcome, memory = run(tmp_path, entry, "healthy")
    assert outcome.detail["health"]["verdict"] == "healthy", outcome.detail["health"]
    told = [event for event in memory.events if event[1] == "finding.raised" and event[0] != "info"]
    assert not told, told
