"""A training loop as people write it, data-parallel over gloo, on request with sharded parameters. It knows nothing of Chainrule."""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--save")
parser.add_argument("--fsdp", action="store_true")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
torch.set_num_threads(1)
network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
if options.fsdp:
    for layer in network[::2]:
        fully_shard(layer)
    model = fully_shard(network)
else:
    model = DistributedDataParallel(network)
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
data = torch.randn(512, 16)
target = data.sum(1, keepdim=True).sin()
for step in range(options.steps):
    picked = torch.arange(rank, 512, world_size)[torch.randperm(512 // world_size)[:32]]
    loss = nn.functional.mse_loss(model(data[picked]), target[picked])
    optimizer.zero_grad()
    loss.backward()
    if options.fsdp and rank == 0:
        parts = [[p.grad.to_local().square().sum() for p in layer.parameters()] for layer in network[::2]]
        print("norms", *(float(sum(part)) ** 0.5 for part in parts))
    optimizer.step()
    if rank == 0 and step % 10 == 0:
        print(f"step {step} loss {loss.item():.4f}")
if rank == 0 and options.save:
    os.makedirs(options.save, exist_ok=True)
    torch.save(network.state_dict(), os.path.join(options.save, "weights.pt"))
dist.destroy_process_group()
