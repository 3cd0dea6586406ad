"""On a machine with CUDA: a process that has rehearsed without any device can still be given one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.integration, pytest.mark.gpu]

STANDBY = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from workers.worker import TrainWorker, see_only
worker = TrainWorker(None)
worker._rehearsing.join()
see_only(["0"])
import torch
from workers.process_group import choose_device
assert choose_device(0, 1.0) == torch.device("cuda", 0)
print(float(torch.ones(3, device="cuda").sum()))
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_standby_is_given_its_device_late() -> None:
    """Would catch a rehearsal, or an import, that makes the first CUDA call too early."""
    done = subprocess.run([sys.executable, "-c", STANDBY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "3.0"), done.stderr
