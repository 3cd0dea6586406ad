"""What the watching of a job found and measured, over REST, from a store and a folder as scheduler and controller fill them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.values import Role
from tests.integration.api_service import Service, error_of, running_service
from tests.integration.commands import chainrule
from workers.gradient_files import GradientWriter
from workers.jobfolder import FACTS, append_lines
from workers.watch import stored
from workers.watch.probe_files import ProbeWriter
from workers.watch.probe_rows import BINS, STATISTICS, Names, pack
from workers.watch.rank_files import RankWriter
from workers.watch.rank_rows import pack as pack_ranks

pytestmark = pytest.mark.integration

NAMES = Names(("conv", "head"), ("act",))
HIGH = {
    "code": "lr_too_high", "severity": "critical", "first_bad_step": 41, "layer": "head", "rank": 1, "evidence": {"loss": 11.4},
    "explanation": "The loss is 11.4.", "suggestion": "Lower it", "consequences": ["exploding_gradient in conv"],
}  # fmt: skip
SPIKE = {**HIGH, "code": "loss_spike", "severity": "warning", "layer": None, "rank": None, "consequences": []}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("home"), steps=None) as running:
        yield running


@pytest.fixture
def job(service: Service) -> Iterator[str]:
    job_id = service.submit()
    yield job_id
    service.post(f"/v1/jobs/{job_id}/kill")
    service.run_until(job_id, "cancelled")


def write_probes(service: Service, job: str, steps: range, attempt: int = 1) -> None:
    rows = []
    for step in steps:
        numbers = np.full((len(STATISTICS), 2), step / 100)
        numbers[STATISTICS.index("largest"), 1], numbers[STATISTICS.index("second_moments")] = np.inf, np.nan
        rows.append(
            pack(NAMES, step, 0.011, np.concatenate([numbers.ravel(), [0.25, np.nan], np.eye(2, BINS, 20).ravel()]))
        )
    ProbeWriter(service.folder(job).probes_path, attempt).append(NAMES.layers, NAMES.activations, rows)


def test_a_job_of_which_nothing_is_known(service: Service, job: str) -> None:
    assert service.get(f"/v1/jobs/{job}/health").json() == {
        "object": "job.health", "job_id": job, "verdict": "unknown", "sentence": "Nothing has been measured yet.",
        "findings": [], "history": [], "facts": None,
        "watching": {"share": None, "budget": 0.02, "probes": 0, "last_probe_step": None},
    }  # fmt: skip
    probes = service.get(f"/v1/jobs/{job}/probes?layers=whatever").json()
    assert (probes["layers"], probes["steps"], probes["statistics"]["silent"]) == ([], [], [])
    assert service.get(f"/v1/jobs/{job}/probes/histograms?layer=whatever").json()["steps"] == []


def test_verdict_findings_history_and_facts(service: Service, job: str) -> None:
    on_data = {key: value for key, value in HIGH.items() if key not in ("rank", "consequences")}
    service.tell(job, "data.finding", {**on_data, "code": "bad_rows", "first_bad_step": 0, "layer": None})
    service.tell(job, "evaluation", {"step": 10})
    service.tell(job, "finding.raised", {"step": 30, "finding": SPIKE})
    service.tell(job, "finding.cleared", {"step": 60, "finding": SPIKE}, "info")
    service.tell(job, "finding.raised", {"step": 70, "finding": HIGH})
    service.judge(job, verdict="critical", sentence="The loss is 11.4.", findings=[HIGH])
    service.folder(job).write_document(FACTS, {"optimizer": "adamw", "layers": []})
    write_probes(service, job, range(1, 4))
    health = service.get(f"/v1/jobs/{job}/health", headers=service.key_of(Role.VIEWER)).json()
    assert (health["verdict"], health["findings"]) == ("critical", [HIGH])
    told = [(each["event"], each["step"], each["finding"]["code"]) for each in health["history"]]
    assert told == [
        ("raised", 0, "bad_rows"), ("raised", 30, "loss_spike"), ("cleared", 60, "loss_spike"), ("raised", 70, "lr_too_high")
    ]  # fmt: skip
    assert health["history"][0]["finding"]["consequences"] == []
    assert health["facts"] == {"optimizer": "adamw", "layers": []}
    assert (health["watching"]["probes"], health["watching"]["last_probe_step"]) == (3, 3)
    assert service.get(f"/v1/jobs/{job}/health?facts=false").json()["facts"] is None
    assert service.get(f"/v1/jobs/{job}/health", headers=service.key_of(Role.ADMIN, "elsewhere")).status_code == 404


def test_probes_are_chosen_by_statistic_layer_and_step(service: Service, job: str) -> None:
    write_probes(service, job, range(1, 101))
    write_probes(service, job, range(101, 201), attempt=2)
    everything = service.get(f"/v1/jobs/{job}/probes?max_points=10000").json()
    assert (everything["layers"], everything["activations"]) == (["conv", "head"], ["act"])
    assert everything["steps"] == list(range(1, 201))
    assert set(everything["statistics"]) == {*STATISTICS, "silent", "saturated"}
    assert everything["statistics"]["update_ratios"][6] == [0.07, 0.07]  # a float32 in its own few digits
    assert everything["statistics"]["largest"][0] == [0.01, "Infinity"]
    assert everything["statistics"]["second_moments"][0] == [None, None]
    assert (everything["statistics"]["silent"][0], everything["statistics"]["saturated"][0]) == ([0.25], [None])
    assert everything["cost_shares"][0] == 0.011
    assert everything["watching"] == service.get(f"/v1/jobs/{job}/health").json()["watching"]
    assert (everything["watching"]["probes"], everything["watching"]["last_probe_step"]) == (200, 200)
    few = service.get(
        f"/v1/jobs/{job}/probes?statistics=zero_shares,silent&layers=head&first_step=90&last_step=120&max_points=4"
    ).json()
    assert few["steps"] == [90, 100, 110, 120]
    assert (few["layers"], few["activations"]) == (["head"], [])
    assert few["statistics"] == {"zero_shares": [[0.9], [1.0], [1.1], [1.2]], "silent": [[], [], [], []]}
    assert len(service.get(f"/v1/jobs/{job}/probes").json()["steps"]) == 100


def test_histograms_of_a_layer(service: Service, job: str) -> None:
    write_probes(service, job, range(1, 31))
    found = service.get(f"/v1/jobs/{job}/probes/histograms?layer=head&first_step=10&max_points=2").json()
    assert (found["layer"], found["lowest"], found["steps"]) == ("head", -40, [10, 30])
    assert [row.index(1.0) for row in found["shares"]] == [21, 21]
    assert {len(row) for row in found["shares"]} == {BINS}


BAD = [
    ("probes?statistics=loss", "statistics", "there is no 'loss'; there are weight_norms, "),
    ("probes?statistics=,", "statistics", "at least one"),
    ("probes?layers=conv,tail", "layers", "there is no 'tail'; there are conv, head, act."),
    ("probes?first_step=9&last_step=8", "first_step", "after last_step"),
    ("probes?max_points=1", "max_points", "greater than or equal to 2"),
    ("probes?first_step=-1", "first_step", "greater than or equal to 0"),
    ("probes?layer=conv", "layer", "unknown parameter"),
    ("probes/histograms", "layer", "required"),
    ("probes/histograms?layer=act", "layer", "there is no 'act'; there are conv, head."),
    ("probes/histograms?layer=%1b%5b31m", "layer", "pattern"),
    ("health?facts=yes", "facts", "true or false"),
]


@pytest.mark.parametrize(("path", "param", "said"), BAD, ids=[case[0] for case in BAD])
def test_bad_parameters(service: Service, job: str, path: str, param: str, said: str) -> None:
    write_probes(service, job, range(1, 4))
    answer = service.get(f"/v1/jobs/{job}/{path}")
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == param
    assert said in error["message"], error


def test_numbers_for_prometheus(service: Service, job: str) -> None:
    def numbers() -> dict[str, float]:
        lines = service.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    raised, critical = (
        'chainrule_findings_raised_total{code="lr_too_high",severity="critical"}',
        'chainrule_jobs_by_verdict{verdict="critical"}',
    )
    before = numbers()
    service.tell(job, "data.finding", {**SPIKE, "code": "bad_rows"})
    service.tell(job, "finding.raised", {"step": 70, "finding": HIGH})
    service.tell(job, "finding.cleared", {"step": 90, "finding": HIGH}, "info")
    assert numbers()['chainrule_jobs_by_verdict{verdict="unknown"}'] == 1
    service.judge(job, verdict="critical", sentence="", findings=[HIGH])
    after = numbers()
    assert after[raised] == before.get(raised, 0) + 1
    assert after['chainrule_findings_raised_total{code="bad_rows",severity="warning"}'] == 1
    assert (before[critical], after[critical]) == (0, 1)
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    assert numbers()[critical] == 0  # a job that has ended alarms nobody any more
    assert numbers()[raised] == after[raised]


def test_a_run_is_judged_anew(service: Service, job: str) -> None:
    """From all that its folder has: here a rank whose own gradient is off, which neither losses nor norms show."""
    nothing = service.get(f"/v1/jobs/{job}/diagnosis").json()
    assert (nothing["verdict"], nothing["findings"], nothing["timeline"]) == ("unknown", [], [])
    folder, random = service.folder(job), np.random.default_rng(0)
    losses = 2.0 * np.exp(-np.arange(1, 301) / 60) + 0.1
    rows = [{"step": i + 1, "timestamp": 0.0, "values": {"train/loss": loss}} for i, loss in enumerate(losses.tolist())]
    append_lines(folder.metrics_path(1), rows)
    noise = np.exp(0.05 * random.standard_normal((300, 2)))
    GradientWriter(folder.gradients_path, 1).append(("a", "b"), list(zip(range(1, 301), noise.tolist(), strict=True)))
    own = np.exp(0.05 * random.standard_normal((300, 2)))
    own[149, 1] = 1e6
    table = [
        np.stack([each, [8.0, 8.0], [loss, loss], [0.0, 0.0]], axis=1) for each, loss in zip(own, losses, strict=True)
    ]
    RankWriter(folder.ranks_path, 1).append([pack_ranks(i + 1, part) for i, part in enumerate(table)], -1)
    found = service.get(f"/v1/jobs/{job}/diagnosis").json()
    assert (found["verdict"], found["findings"][0]["rank"], found["findings"][0]["first_bad_step"]) == (
        "critical",
        1,
        150,
    )
    assert [entry["event"] for entry in found["timeline"]][:1] == ["raised"]
    assert 150 <= found["timeline"][0]["step"] < 165
    assert service.get("/v1/jobs/job-0123456789abcdef/diagnosis").status_code == 404


def test_a_run_is_judged_alike_by_the_service_and_from_its_folder(
    service: Service, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is: losses that are no numbers lie on steps whose norms are small beside their neighbours', so that of few steps with
    the largest norms none shows them. Would catch a service that judges by other rows than the command."""
    steps = np.arange(1, 9001)
    losses = 2.0 * np.exp(-steps / 2000) + 0.1
    losses[4000:4060:2] = np.nan
    folder = service.folder(job)
    rows = [
        {"step": i, "timestamp": 0.0, "values": {"train/loss": loss}}
        for i, loss in zip(steps.tolist(), losses.tolist(), strict=True)
    ]
    append_lines(folder.metrics_path(1), rows)
    norms = np.where(np.isnan(losses) | (steps % 2 == 1), 1.0, 2.0)
    norms = norms[:, None] * np.ones(2)
    GradientWriter(folder.gradients_path, 1).append(("a", "b"), list(zip(steps.tolist(), norms.tolist(), strict=True)))

    def both() -> list[Any]:
        found = (
            service.get(f"/v1/jobs/{job}/diagnosis").json(),
            json.loads(chainrule("diagnose", str(folder.path), "--json").stdout),
        )
        return [{name: each[name] for name in ("verdict", "sentence", "findings", "timeline")} for each in found]

    served, read = both()
    assert served == read
    assert ("raised", "nonfinite_gradient") in [(each["event"], each["finding"]["code"]) for each in served["timeline"]]
    monkeypatch.setattr(stored, "MOST_NORMS", 2 * 3000)
    served, read = both()
    assert served == read
    assert served["timeline"] == []
