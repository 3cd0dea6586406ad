"""The observer inside a script's process: what it measures is right, and the script does not notice it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import optimizer

from tests.scripts import optimizer_cases
from workers.scripts.observations import Hearer, Measured, Observations, Probed
from workers.scripts.site.chainrule_aside import Aside
from workers.scripts.site.chainrule_layers import Part
from workers.scripts.site.chainrule_observer import Observer
from workers.scripts.surroundings import SITE
from workers.watch.facts_json import from_json
from workers.watch.probe_rows import Names
from workers.watch.record import Facts

pytestmark = pytest.mark.unit

CASES = Path(__file__).parents[1] / "scripts" / "optimizer_cases.py"


class Seen(Hearer):
    """What an observer has sent, and what the script says of itself."""

    def __init__(self) -> None:
        self.layers: tuple[str, ...] = ()
        self.rows: list[Measured] = []
        self.overhead: float | None = None
        self.facts: Facts | None = None
        self.uncleared: float | None = None
        self.names = Names((), ())
        self.probes: list[Probed] = []
        self.troubles: list[tuple[str, str]] = []
        self.step, self.errors, self.said = 0, "", {}  # type: int, str, dict[str, Any]

    def listen(self) -> Observations:
        return Observations(self)

    def take_layers(self, layers: tuple[str, ...], sharded: bool) -> None:
        assert not sharded
        self.layers = layers

    def take_rows(self, rows: Sequence[Measured]) -> None:
        self.rows.extend(rows)

    def take_end(self, overhead: float) -> None:
        self.overhead = overhead

    def take_facts(self, facts: Mapping[str, Any], uncleared: float | None) -> None:
        self.facts, self.uncleared = from_json(facts), uncleared

    def take_probe_names(self, layers: tuple[str, ...], activations: tuple[str, ...]) -> None:
        self.names = Names(layers, activations)

    def take_probes(self, probes: Sequence[Probed]) -> None:
        self.probes.extend(probes)

    def take_trouble(self, of: str, error: str) -> None:
        self.troubles.append((of, error))


def alone(case: str, *, rank: int = 0, budget: float = 1.0, observed: bool = True) -> Seen:
    """In a process of its own, where the observer comes in as it does in a job."""
    seen = Seen()
    observations = seen.listen()
    environment = {**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SITE)}
    if observed:
        environment |= {"CHAINRULE_OBSERVER": observations.address, "CHAINRULE_OVERHEAD_BUDGET": str(budget)}
    command = [sys.executable, str(CASES), case]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    observations.finish()
    seen.step, seen.errors = observations.step, run.stderr
    assert run.returncode == 0, run.stderr
    seen.said = json.loads(run.stdout)
    return seen


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a case in this process, which has torch already."""
    from torch.amp import grad_scaler

    monkeypatch.setattr(optimizer, "_global_optimizer_pre_hooks", OrderedDict())
    monkeypatch.setattr(optimizer, "_global_optimizer_post_hooks", OrderedDict())
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)
    monkeypatch.setattr(grad_scaler.GradScaler, "scale", grad_scaler.GradScaler.scale)

    def run(case: str, *, measures: bool = True, budget: float = 1.0) -> Seen:
        seen = Seen()
        observations = seen.listen()
        observer = Observer(observations.address, Part, Aside, measures=measures, budget=budget)
        observer.optimizers(optimizer)
        observer.scalers(grad_scaler)
        seen.said = optimizer_cases.run(case)
        observer.end()
        observations.finish()
        seen.step = observations.step
        return seen

    return run


def test_a_script_does_not_notice() -> None:
    """Bit by bit, random numbers included."""
    seen, other = alone("plain"), alone("plain", observed=False)
    assert seen.said["weights_sha256"] == other.said["weights_sha256"]
    assert seen.said["next_random"] == other.said["next_random"]
    assert not seen.errors, seen.errors
    assert len(seen.rows) == 12
    assert not other.rows


@pytest.mark.parametrize("case", ["plain", "accumulated", "scaled", "closure", "sparse", "unowned", "frozen"])
def test_norms_and_losses_are_those_of_autograd(here: Any, case: str) -> None:
    """The script writes down its own, tensor by tensor, after its own clipping."""
    seen = here(case)
    assert seen.layers == tuple(seen.said["layers"])
    assert [row.step for row in seen.rows] == list(range(1, len(seen.said["losses"]) + 1))
    np.testing.assert_allclose([row.norms for row in seen.rows], seen.said["norms"], rtol=1e-6)
    np.testing.assert_allclose([row.loss for row in seen.rows], seen.said["losses"], rtol=1e-6)
    assert {row.learning_rate for row in seen.rows} == {0.05}
    assert seen.step == len(seen.rows)


def test_two_networks_that_train_against_each_other(here: Any) -> None:
    seen = here("adversarial")
    assert seen.layers == ("body", "head", "Critic.body", "Critic.head")
    assert len(seen.rows) == len(seen.said["losses"])
    np.testing.assert_allclose([row.norms for row in seen.rows[1:]], seen.said["norms"][1:], rtol=1e-6)
    np.testing.assert_allclose([row.loss for row in seen.rows[1:]], seen.said["losses"][1:], rtol=1e-6)


def test_two_optimizers_of_one_network_share_its_steps(here: Any) -> None:
    seen = here("split")
    assert seen.layers == ("0", "2", "0 (SGD)", "2 (SGD)")
    assert [row.step for row in seen.rows] == list(range(1, 13))


def test_one_that_goes_on_counts_on(here: Any) -> None:
    seen = here("resumed")
    assert [row.step for row in seen.rows] == list(range(101, 113))


def test_other_ranks_only_say_that_they_live(here: Any) -> None:
    seen = here("plain", measures=False)
    assert (seen.rows, seen.layers) == ([], ())
    assert seen.step == len(seen.said["losses"])


def test_a_budget_is_kept(here: Any) -> None:
    """Steps without any work: to measure each of them would take a multiple of their time."""
    seen = here("many", budget=0.02)
    assert seen.overhead is not None
    assert seen.step == 3000
    assert 25 <= len(seen.rows) < 1000


def test_another_sitecustomize_is_run_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.other = __file__\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SITE), str(tmp_path)]), "CHAINRULE_OBSERVER": "/x"}
    code = "import sys; print(other, [p for p in sys.path if 'scripts/site' in p], 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(tmp_path / "sitecustomize.py"), "[]", "False"]


def test_a_worker_that_is_gone_is_no_ones_trouble(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Observer("/nowhere/observer", Part, Aside, measures=True, budget=1.0).optimizers(optimizer)
    assert len(optimizer_cases.run("plain")["losses"]) == 12
    assert capsys.readouterr().err.count("chainrule: this script is not observed any more") == 1
