"""The install steps of the images, in clean virtual environments."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pytest

from tests.deployment.hosts import CHECKOUT
from tests.deployment.images import Image, installed, stages

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def pins(lock: str) -> set[str]:
    return set((CHECKOUT / lock).read_text().split())


@pytest.mark.parametrize("lock", ["deploy/requirements-control.lock", "deploy/requirements-ray.lock"])
def test_an_image_has_what_the_tests_run_with(lock: str) -> None:
    """Would catch a lock that was not made anew with the others."""
    assert pins(lock) <= pins("requirements.lock"), pins(lock) - pins("requirements.lock")


def test_the_control_plane_needs_no_torch() -> None:
    names = {pin.partition("==")[0] for pin in pins("deploy/requirements-control.lock")}
    assert "ray" in names
    assert not names & {"torch", "transformers", "triton"}
    assert not [name for name in names if name.startswith("nvidia-c")], "CUDA"


def test_images_are_not_run_by_root() -> None:
    text = (CHECKOUT / "deploy" / "Dockerfile").read_text()
    for name in ("control", "ray"):
        users = [arguments for instruction, arguments in stages(text)[name].steps if instruction == "USER"]
        assert users == ["10001:10001"]


def test_both_install_from_nothing(built: Mapping[str, Image]) -> None:
    control, ray = built["chainrule-control"], built["chainrule-ray"]
    assert "torch" not in installed(control)
    assert {"torch", "transformers", "mlflow", "chainrule"} <= installed(ray)
    for image in (control, ray):
        check = [str(image.venv / "bin" / "python"), "-m", "pip", "check"]
        run = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stdout
        command = [str(image.venv / "bin" / "chainrule"), "--help"]
        subprocess.run(command, cwd="/", check=True, capture_output=True, timeout=60)
    assert (control.workdir / "make_buckets.py").exists()
