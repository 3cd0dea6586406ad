"""A loop whose gradient is no number now and then; its first argument says how it steps: plain, closure, momentum or lbfgs. Each rank has its own
data where there are several. It prints whether its weights are numbers at last. It knows nothing of Chainrule."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

kind, steps = sys.argv[1], int(sys.argv[2])
rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
torch.manual_seed(0)
torch.set_num_threads(1)
network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
model = network
if world_size > 1:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(network)
optimizers = {
    "plain": lambda: torch.optim.AdamW(model.parameters(), lr=0.01),
    "closure": lambda: torch.optim.SGD(model.parameters(), lr=0.05),
    "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
}
optimizer = optimizers[kind]()
data = torch.randn(256, 8)
target = data.sum(1, keepdim=True).sin()
left_out = 0
for step in range(1, steps + 1):
    picked = torch.arange(rank, 256, world_size)[torch.randperm(256 // world_size)[:32]]
    bad = step % 10 == 0 and rank == world_size - 1

    def passes(picked=picked, bad=bad):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(data[picked]), target[picked])
        (loss * float("inf") * 0 if bad else loss).backward()
        return loss

    before = [parameter.detach().clone() for parameter in network.parameters()]
    if kind == "closure":
        optimizer.step(passes)
    else:
        passes()
        optimizer.step()
    left_out += all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
sound = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
total = sum(parameter.double().sum().item() for parameter in network.parameters())
print(f"rank {rank} sound {sound} left out {left_out} weights {total.hex()}")
if world_size > 1:
    dist.destroy_process_group()
