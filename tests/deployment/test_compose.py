"""docker-compose.yml is valid, and as safe as it says. Read by Docker's own tool."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from deploy import compose_env
from service.keys import WELL_FORMED
from service.settings import Settings
from tests.deployment import compose, images

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compose.config(tmp_path_factory.mktemp("compose"))


def test_the_tool_refuses_a_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the guard: it does read what it is given."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(compose.FILE.read_text().replace("healthcheck:", "healthchek:", 1))
    monkeypatch.setattr(compose, "FILE", wrong)
    run = compose.read(tmp_path, compose_env.complete("")[0])
    assert run.returncode != 0
    assert "healthchek" in run.stderr


def test_nothing_starts_without_secrets(tmp_path: Path) -> None:
    """Would catch a default password."""
    env_file, _ = compose_env.complete("")
    for name in compose_env.SECRETS:
        without = "".join(line for line in env_file.splitlines(keepends=True) if not line.startswith(f"{name}="))
        run = compose.read(tmp_path, without)
        assert run.returncode != 0, f"{name} is not needed"
        assert "make compose-env" in run.stderr


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("MLFLOW_PORT=9000\nRAY_TOKEN=mine")
    path.chmod(0o644)
    compose_env.main(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert first.startswith("MLFLOW_PORT=9000\nRAY_TOKEN=mine\n")
    compose_env.main(path)
    assert path.read_text() == first, "what is there stays"
    compose_env.main(tmp_path / "other")
    mine, other = (
        dict(line.split("=", 1) for line in each.splitlines()) for each in (first, (tmp_path / "other").read_text())
    )
    assert not {mine[name] for name in compose_env.SECRETS} & {other[name] for name in compose_env.SECRETS}
    assert WELL_FORMED.fullmatch(mine["CHAINRULE_ADMIN_KEY"])


def test_services_have_only_what_they_need(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        if name != "prepare":  # which gives volumes to those who are not root
            assert service["user"].split(":")[0] not in ("0", "root"), name
            assert "cap_add" not in service, name
        if service.get("restart") == "unless-stopped":
            assert service["healthcheck"]["test"], f"{name} has no health check"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is published to the world"


def test_what_trains_reaches_neither_the_database_nor_the_api(config: dict[str, Any]) -> None:
    def networks(service: str) -> set[str]:
        return set(config["services"][service]["networks"])

    for trains in ("ray-head", "ray-worker"):
        for kept in ("postgres", "api"):
            assert not networks(trains) & networks(kept)
        for needed in ("s3", "mlflow", "scheduler"):
            assert networks(trains) & networks(needed)


def test_settings_in_the_file_are_settings(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a name that nobody reads, which pydantic passes over."""
    for name, service in config["services"].items():
        given = {key: value for key, value in service.get("environment", {}).items() if key.startswith("CHAINRULE_")}
        unknown = {key.removeprefix("CHAINRULE_").lower() for key in given} - set(Settings.model_fields)
        assert not unknown, f"{name}: {unknown}"
        with monkeypatch.context() as patch:
            for key in [key for key in os.environ if key.startswith("CHAINRULE_")]:
                patch.delenv(key)
            for key, value in given.items():
                patch.setenv(key, str(value))
            Settings()


def test_parts_that_speak_to_each_other_agree(config: dict[str, Any]) -> None:
    services = config["services"]
    api, scheduler, worker = (services[name]["environment"] for name in ("api", "scheduler", "ray-worker"))
    for key in ("DATABASE_URL", "STORAGE", "CHECKPOINTS", "MLFLOW_URL"):
        assert api[f"CHAINRULE_{key}"] == scheduler[f"CHAINRULE_{key}"], key
    assert scheduler["RAY_AUTH_TOKEN"] == worker["RAY_AUTH_TOKEN"]
    assert {volume.split(":")[0] for volume in services["ray-worker"]["volumes"]} & {"storage"}
    made = set(images.stages(images.DOCKERFILE.read_text()))
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in made
            assert service["image"] == f"chainrule-{service['build']['target']}"


def test_code_of_users_runs_only_where_somebody_has_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("CHAINRULE_")]:
        monkeypatch.delenv(key)
    for given, allowed in (({}, False), ({"CHAINRULE_ALLOW_CODE": "true"}, True)):
        services = compose.config(tmp_path, **given)["services"]
        for name in ("api", "scheduler"):
            monkeypatch.setenv("CHAINRULE_ALLOW_CODE", str(services[name]["environment"]["CHAINRULE_ALLOW_CODE"]))
            assert Settings(api_host="0.0.0.0").code_allowed is allowed, name
