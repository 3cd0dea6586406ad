"""The observer inside a script's process: what it measures is right, and the script does not notice it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.optim import optimizer

from tests.scripts import optimizer_cases
from workers.scripts.observations import Hearer, Measured, Observations, Probed
from workers.scripts.site import chainrule_layers, chainrule_observer
from workers.scripts.site.chainrule_aside import Aside
from workers.scripts.site.chainrule_layers import Part
from workers.scripts.site.chainrule_observer import Observer
from workers.scripts.surroundings import SITE
from workers.watch.facts_json import from_json
from workers.watch.probe_rows import Names, pack, probes_of, unpack
from workers.watch.record import Facts, Probes

pytestmark = pytest.mark.unit

CASES = Path(__file__).parents[1] / "scripts" / "optimizer_cases.py"


class Seen(Hearer):
    """What an observer has sent, and what the script says of itself."""

    def __init__(self, *, sharded: bool = False) -> None:
        self._sharded = sharded
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
        assert sharded == self._sharded
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

    def probed(self) -> Probes:
        rows = [pack(self.names, probe.step, probe.cost_share, probe.row) for probe in self.probes]
        return probes_of(self.names, unpack(self.names, rows))

    def take_trouble(self, of: str, error: str) -> None:
        self.troubles.append((of, error))


def alone(
    case: str, *, rank: int = 0, budget: float = 1.0, observed: bool = True, repaired: bool = False, path: str = ""
) -> Seen:
    """In a process of its own, where the observer comes in as it does in a job."""
    seen = Seen()
    observations = seen.listen()
    environment = {
        **os.environ,
        "RANK": str(rank),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SITE), path])),
    }
    if observed:
        environment |= {"CHAINRULE_OBSERVER": observations.address, "CHAINRULE_OVERHEAD_BUDGET": str(budget)}
    if repaired:
        environment |= {"CHAINRULE_REPAIRS": f"{observations.address}.acts"}
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

    if (frames := sys.modules.get("torch._dynamo.convert_frame")) is not None:
        monkeypatch.setattr(frames, "FRAME_COUNTER", 0)  # what other tests have compiled in this process
    monkeypatch.setattr(optimizer, "_global_optimizer_pre_hooks", OrderedDict())
    monkeypatch.setattr(optimizer, "_global_optimizer_post_hooks", OrderedDict())
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", torch.nn.Module.load_state_dict)
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)
    monkeypatch.setattr(grad_scaler.GradScaler, "scale", grad_scaler.GradScaler.scale)
    monkeypatch.setattr(grad_scaler.GradScaler, "step", grad_scaler.GradScaler.step)

    def run(case: str, *, measures: bool = True, budget: float = 1.0) -> Seen:
        seen = Seen()
        observations = seen.listen()
        observer = Observer(observations.address, Part, Aside, measures=measures, budget=budget)
        observer.modules(torch.nn.modules.module)
        observer.optimizers(optimizer)
        observer.scalers(grad_scaler)
        seen.said = optimizer_cases.run(case)
        observer.end()
        observations.finish()
        seen.step = observations.step
        return seen

    return run


@pytest.mark.parametrize("case", ["skipped", "fused"])
def test_a_step_that_a_loss_scaler_skips_is_none(here: Any, case: str) -> None:
    """Would catch the losses of several passes in one row, and gradients that are not finite in a training that is well."""
    seen = here(case)
    np.testing.assert_allclose([row.loss for row in seen.rows], seen.said["losses"], rtol=1e-6)
    np.testing.assert_allclose([row.norms for row in seen.rows], seen.said["norms"], rtol=1e-6)
    if case == "skipped":
        assert seen.facts.batch_size == 64, "of one pass"
        assert seen.facts.loss.constant == pytest.approx(float(optimizer_cases.target.var(correction=0)), rel=1e-4)


def test_parameters_that_come_later_are_measured_as_the_others(here: Any) -> None:
    seen = here("unfrozen")
    assert seen.layers == ("0", "2")
    np.testing.assert_allclose([row.loss for row in seen.rows], seen.said["losses"], rtol=1e-6)
    for row, norms in zip(seen.rows, seen.said["norms"], strict=True):
        np.testing.assert_allclose(row.norms, norms, rtol=1e-6)


def test_what_one_training_leaves_does_not_stay_for_the_next(here: Any) -> None:
    """Neither in memory, which the script checks, nor in the rows."""
    seen = here("folds")
    assert seen.layers == ("0", "2")
    assert not seen.troubles
    np.testing.assert_allclose([row.norms for row in seen.rows], seen.said["norms"], rtol=1e-6)


def test_optimizers_without_end_are_looked_at_within_the_budget(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To find the network of each takes a multiple of a step."""
    looked_for = Mock(wraps=chainrule_layers._owners)
    monkeypatch.setattr(chainrule_layers, "_owners", looked_for)
    seen = here("renewed", budget=0.02)
    assert seen.step == 200
    assert looked_for.call_count < 20
    assert seen.layers == ("0", "2")


def test_what_has_been_done_is_read_once(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator it would be waited for, at every step."""
    read = Mock(return_value=0)
    monkeypatch.setattr(chainrule_observer, "_steps_done", read)
    here("plain")
    assert read.call_count <= 2


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("case", ["plain", "closure", "busy"])
def test_a_script_does_not_notice(case: str, repaired: bool) -> None:
    """Bit by bit, random numbers included, with every step probed; also where it would be repaired if it failed."""
    seen, other = alone(case, repaired=repaired), alone(case, observed=False)
    assert seen.said["weights_sha256"] == other.said["weights_sha256"]
    assert seen.said["next_random"] == other.said["next_random"]
    assert not seen.errors, seen.errors
    assert not seen.troubles, seen.troubles
    assert [probe.step for probe in seen.probes] == list(range(2, 13))
    assert len(seen.rows) == 12
    assert not other.rows


@pytest.mark.parametrize(
    "case",
    ["plain", "accumulated", "scaled", "closure", "sparse", "unowned", "frozen", "copied", "given_once", "averaged", "broken_off", "nested"],
)  # fmt: skip
def test_norms_and_losses_are_those_of_autograd(here: Any, case: str) -> None:
    """The script writes down its own, tensor by tensor, after its own clipping."""
    seen = here(case)
    assert seen.layers == tuple(seen.said["layers"])
    assert [row.step for row in seen.rows] == list(range(1, len(seen.said["losses"]) + 1))
    np.testing.assert_allclose([row.norms for row in seen.rows], seen.said["norms"], rtol=1e-6)
    np.testing.assert_allclose([row.loss for row in seen.rows], seen.said["losses"], rtol=1e-6)
    assert {row.learning_rate for row in seen.rows} == {0.05}
    assert seen.step == len(seen.rows)


def test_parameters_of_no_module_are_probed_too(here: Any) -> None:
    seen = here("unowned")
    assert not seen.troubles
    assert seen.probed().layers == ("group0.param0", "group0.param1")


@pytest.mark.parametrize("case", ["plain", "accumulated", "scaled", "closure", "sparse"])
def test_probes_are_what_autograd_gives(here: Any, case: str) -> None:
    """From the second step on, when the modules are known before the pass."""
    seen = here(case)
    assert not seen.troubles
    probes = seen.probed()
    assert list(probes.steps) == list(range(2, 13))
    assert probes.layers == tuple(seen.said["layers"])
    np.testing.assert_allclose(probes.weight_norms, seen.said["weight_norms"][1:], rtol=1e-5)
    np.testing.assert_allclose(probes.update_ratios, seen.said["update_ratios"][1:], rtol=1e-4)
    if case != "sparse":
        assert probes.activations == ("1",)
        assert ((probes.saturated >= 0) & (probes.saturated < 0.5)).all(), "a tanh near 0"


def test_facts_are_those_of_the_first_step(here: Any) -> None:
    torch.manual_seed(0)
    first = optimizer_cases.network()[0]
    seen = here("plain")
    facts = seen.facts
    assert [(layer.name, layer.kind, layer.activation) for layer in facts.layers] == [
        ("0", "Linear", "Tanh"),
        ("2", "Linear", None),
    ]
    assert facts.layers[0].std == pytest.approx(float(first.weight.detach().std(correction=0)), rel=1e-5)
    assert (facts.loss.function, facts.loss.bound) == ("mse_loss", 0.0)
    assert (facts.optimizer, facts.learning_rate, facts.batch_size, facts.world_size) == ("sgd", 0.05, 16, 1)
    assert (facts.inputs.shape, facts.optimizers, facts.begins_trained) == ((16, 8), 1, False)
    assert seen.uncleared is None


def test_the_best_constant_answer_is_in_the_measure_of_the_series(here: Any) -> None:
    """Four passes a step, each divided by four."""
    facts = here("accumulated").facts
    assert facts.batch_size == 64
    spread = float(optimizer_cases.target[:16].var(correction=0))
    assert facts.loss.constant == pytest.approx(spread, rel=1e-4)


def test_what_a_line_search_tries_is_one_pass(here: Any) -> None:
    seen = here("searched")
    np.testing.assert_allclose([row.loss for row in seen.rows], seen.said["losses"], rtol=1e-6)
    assert seen.facts.batch_size == 64
    assert seen.facts.loss.constant == pytest.approx(float(optimizer_cases.target.var(correction=0)), rel=1e-4)


def test_gradients_that_nobody_clears_are_seen(here: Any) -> None:
    assert here("uncleared").uncleared == pytest.approx(1.0, rel=1e-5)
    assert here("accumulated").uncleared is None


@pytest.mark.parametrize(("case", "sides"), [("adversarial", 2), ("split", 1)])
def test_only_networks_of_their_own_are_adversaries(here: Any, case: str, sides: int) -> None:
    assert here(case).facts.optimizers == sides


@pytest.mark.parametrize("case", ["resumed", "loaded"])
def test_one_that_was_trained_before_is_known(here: Any, case: str) -> None:
    assert here(case).facts.begins_trained


def test_what_is_compiled_is_left_alone() -> None:
    """No hook, which would be compiled in, or break what must be one graph; and a step that is compiled with its optimizer is only not seen.
    Alone: hooks are left out for the rest of a process that compiles."""
    seen = alone("compiled")
    assert not seen.troubles
    assert "chainrule" not in seen.errors
    assert seen.facts is not None
    assert (seen.names.activations, seen.facts.inputs, len(seen.probes)) == ((), None, 11)
    assert len(seen.rows) == 12


@pytest.mark.parametrize(("case", "of"), [("shy", "facts"), ("odd", "probes")])
def test_what_fails_is_left_out_and_the_script_goes_on(here: Any, case: str, of: str) -> None:
    seen = here(case)
    ((left_out, error),) = seen.troubles
    assert left_out == of
    assert "Error" in error
    assert len(seen.rows) == len(seen.said["losses"]) == 12
    if case == "shy":
        assert len(seen.probes) == 11
    else:
        assert seen.facts is not None


def test_a_package_of_the_scripts_own_may_be_called_as_ours(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("mine = True\n")
    seen = alone("plain", path=str(tmp_path))
    assert not seen.troubles
    assert len(seen.probes) == 11
    assert seen.said["workers"] == "mine"


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


def test_a_hearer_that_fails_is_told_of() -> None:
    """Would catch an observation that ends without a word."""

    class Deaf(Seen):
        def take_rows(self, rows: Sequence[Measured]) -> None:
            raise RuntimeError("no room for these")

    seen = Deaf()
    observations = seen.listen()
    observer = Observer(observations.address, Part, Aside, measures=False, budget=1.0)
    observer._tell({"type": "layers", "layers": ["0"], "sharded": False})
    observer._tell({"type": "rows", "rows": [[1, 0.0, 0.0, None, True]], "step": 1}, bytes(16))
    observer.end()
    observations.finish()
    assert seen.troubles == [("observer", "RuntimeError: no room for these")]


@pytest.mark.parametrize("sent", [b"\x07", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 8])
def test_what_a_kill_has_torn_is_left(sent: bytes) -> None:
    seen = Seen()
    observations = seen.listen()
    with socket.socket(socket.AF_UNIX) as torn:
        torn.connect(observations.address)
        torn.sendall(sent)
    observations.finish()
    assert (seen.rows, seen.troubles) == ([], [])


def test_a_worker_that_is_gone_is_no_ones_trouble(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Observer("/nowhere/observer", Part, Aside, measures=True, budget=1.0).optimizers(optimizer)
    assert len(optimizer_cases.run("plain")["losses"]) == 12
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("chainrule: this process is not observed any more")
