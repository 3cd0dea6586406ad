"""Scripts that people write, which fail and are mended while they run: unmodified, in processes of their own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.toys import Memory, context_in
from workers.membership import Alone
from workers.repair.requests import ask
from workers.repair.told import entries
from workers.reports import Outcome, ReasonCode
from workers.scripts.run import run_script
from workers.spec import parse_spec
from workers.user_code import UserCode

pytestmark = pytest.mark.distributed

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Run:
    def __init__(self, folder: Path, entry: str, arguments: Sequence[str], steps: int, mode: str = "repair") -> None:
        task = {"kind": "script", "code": {"path": str(SCRIPTS)}, "entry": entry, "arguments": list(arguments)}
        document = {"task": task | {"steps": steps, "overhead_budget": 1.0}, "health": {"mode": mode}}
        self.spec = parse_spec({"name": "mended", "workers": {"count": 1}} | document)
        self.memory, self.requests = Memory(), folder / "requests"
        self._context = context_in(
            folder, self.memory, Alone(0, 1), code=UserCode(SCRIPTS, (SCRIPTS,)), requests=self.requests
        )

    def finish(self) -> Outcome:
        outcome = run_script(self.spec, self._context)
        assert outcome.code is ReasonCode.COMPLETED, outcome
        troubles = [event for event in self.memory.events if event[1] in ("script.unobserved", "script.unrepaired")]
        assert not troubles, troubles
        return outcome

    def told(self, type: str) -> list[Mapping[str, Any]]:
        return [data for _, told, data in list(self.memory.events) if told == type]

    def repairs(self) -> list[dict[str, Any]]:
        return entries((type, data) for _, type, data in self.memory.events)

    def rates(self, first: int, last: int) -> set[float]:
        rows = dict(self.memory.rows)
        return {round(rows[step]["train/learning_rate"], 9) for step in range(first, last + 1) if step in rows}


def printed(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(accuracy|loss|rates|last) (\S+)", text)}


def test_a_rate_far_too_high_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own schedule runs as if nothing were changed."""
    steps, found = 1200, {}
    for mode in ("observe", "repair"):
        run = Run(tmp_path / mode, "steep_loop.py", ["1.0", str(steps), "0.004"], steps, mode)
        outcome = run.finish()
        found[mode] = printed(capsys.readouterr().out)
    assert found["observe"]["accuracy"] < 0.6, found
    assert found["repair"]["accuracy"] > 0.75, found
    assert outcome.detail["health"]["verdict"] != "critical", outcome.detail["health"]
    assert found["observe"]["rates"] == found["repair"]["rates"]
    first = run.repairs()[0]
    assert (first["act"]["code"], first["act"]["consent"], first["act"]["rewind"]) == ("lr_too_high", "live", None)
    assert first["act"]["rate"] < 0.1
    kept = next(each for each in run.repairs() if each["state"] == "kept")
    assert kept["ended"] >= kept["act"]["step"] + kept["act"]["probation"]
    assert run.told("repair.kept")


@pytest.mark.parametrize("kind", ["plain", "closure", "momentum"])
def test_updates_that_are_no_number_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    for mode, sound, count in (("observe", "False", 0), ("repair", "True", 6)):
        run = Run(tmp_path / mode, "not_a_number.py", [kind, "60"], 60, mode)
        run.finish()
        assert f"rank 0 sound {sound} left out {count}" in capsys.readouterr().out
    assert run.told("repair.skipped")[0] == {"step": 10, "skipped": 1}


@pytest.mark.parametrize("entry", ["sick_lightning.py", "sick_trainer.py"])
def test_frameworks_are_changed_like_bare_loops(tmp_path: Path, entry: str) -> None:
    """What it answers cannot be mended this late without earlier weights; that the rate is another one is seen in its series."""
    run = Run(tmp_path, entry, ["high_rate", "900"], 900)
    run.finish()
    first = run.repairs()[0]["act"]
    until = min([each["act"]["step"] for each in run.repairs()[1:]], default=900)
    own, step = 3.0, first["step"]
    assert run.rates(1, step) == {own}
    settled = run.rates(step + first["rewarm"], until)
    assert settled == {round(own * first["rate"], 9)}, (settled, first)


def test_what_people_ask_is_done_and_undone(tmp_path: Path) -> None:
    steps = 1600
    run = Run(tmp_path, "steep_loop.py", ["3e-3", str(steps), "0.004"], steps)
    thread = threading.Thread(target=run.finish)
    thread.start()

    def until(type: str, count: int = 1) -> Mapping[str, Any]:
        deadline = time.monotonic() + 60
        while len(run.told(type)) < count and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        return run.told(type)[count - 1]

    until("script.observed")
    ask(run.requests, "steer", "key", learning_rate=1e-4, clip_norm=0.5)
    done = until("repair.done")
    ask(run.requests, "undo", "key", number=1)
    undone = until("repair.undone")
    ask(run.requests, "undo", "key", number=1)
    until("repair.refused")
    thread.join(60)
    assert not thread.is_alive()
    assert undone["repair"]["state"] == "undone"
    assert any("weights and the optimizer's memory stay as they are" in said for said in run.memory.messages)
    first, last = done["step"], undone["step"]
    gamma = 0.9999
    rows = run.memory.rows
    for step, factor in ((first, 1.0), (first + 1, 1e-4 / 3e-3), (last, 1e-4 / 3e-3), (last + 1, 1.0), (steps, 1.0)):
        own = 3e-3 * gamma ** (step - 1)
        assert rows[step]["train/learning_rate"] == pytest.approx(own * factor, rel=0.01), step
