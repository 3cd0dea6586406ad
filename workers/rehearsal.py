"""What a process pays for only once, paid before a job waits for it: imports, and whatever torch does at the first step of its life."""

from __future__ import annotations

import gc
import importlib
import tempfile
from pathlib import Path

# Imported by the parts that are listed here only when they are first used.
MODULES = ("workers.train", "workers.export", "torch._dynamo", "upath.implementations.local")


def rehearse() -> None:
    """Imports everything that training uses sooner or later and trains a model of one weight, for one step, in a group of one.

    Touches no accelerator: which one it gets, a process may not know yet. Random numbers are drawn, but every step seeds its own.
    """
    from workers.tasks import FACTORIES

    for module in [factory.partition(":")[0] for factory in FACTORIES.values()] + list(MODULES):
        importlib.import_module(module)
    import torch
    import torch.distributed as dist

    from workers import checkpoints, parallel
    from workers.optim import build_optimizer
    from workers.process_group import ProcessGroup
    from workers.spec import Optimizer

    cpu = torch.device("cpu")
    group = ProcessGroup(cpu)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = parallel.prepare(torch.nn.Linear(1, 1), cpu)
        model = parallel.distribute(plain, cpu, 2, "ddp")  # the wrapper as for two: a world of one has none
        optimizer = build_optimizer(Optimizer(), model.parameters(), cpu)
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        parallel.dissolve(model)
    finally:
        group.leave()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.newest(Path(folder))
    gc.collect()
    gc.freeze()  # all of this stays; collections while a job begins need not look at it
