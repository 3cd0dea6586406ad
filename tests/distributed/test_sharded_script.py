"""A script whose parameters are in parts of each worker (``fully_shard``): of rank 0's part norms are measured, and facts are known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.distributed import TCPStore

from tests.unit.test_script_observer import Seen
from workers.scripts.surroundings import SITE

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[1] / "scripts" / "bare_loop.py"
RANKS, STEPS = 2, 12


def started(store: TCPStore, rank: int, observer: str | None) -> subprocess.Popen[str]:
    """As torchrun would, which keeps the store."""
    environment = {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(SITE),
    }  # fmt: skip
    if observer:
        environment |= {"CHAINRULE_OBSERVER": observer, "CHAINRULE_OVERHEAD_BUDGET": "1.0"}
    command = [sys.executable, str(SCRIPT), "--fsdp", "--steps", str(STEPS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def losses_and_norms(seen: Seen | None) -> tuple[list[str], np.ndarray]:
    """What rank 0 says of itself."""
    observations = seen.listen() if seen is not None else None
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        started(store, rank, observations.address if observations and rank == 0 else None) for rank in range(RANKS)
    ]
    said, _ = [each.communicate(timeout=120)[0] for each in ranks]
    if observations is not None:
        observations.finish()
    assert [each.returncode for each in ranks] == [0] * RANKS
    lines = said.splitlines()
    norms = [[float(norm) for norm in line.split()[1:]] for line in lines if line.startswith("norms")]
    return [line for line in lines if line.startswith("step")], np.array(norms)


def test_a_sharded_loop_is_watched_and_does_not_notice() -> None:
    seen = Seen(sharded=True)
    losses, norms = losses_and_norms(seen)
    losses_alone, norms_alone = losses_and_norms(None)
    assert losses == losses_alone
    assert (norms == norms_alone).all()
    assert seen.layers == ("0", "2", "4")
    np.testing.assert_allclose([row.norms for row in seen.rows], norms, rtol=1e-5)
    assert not seen.probes, "they would need the parts of others"
    assert not seen.troubles
    assert seen.facts is not None
    assert [layer.kind for layer in seen.facts.layers] == ["Linear"] * 3
    assert [layer.shape for layer in seen.facts.layers] == [(32, 16), (32, 32), (1, 32)]
    assert seen.facts.loss.function == "mse_loss"
