"""Handwritten digits by a small network, data-parallel. Runs as it stands: torchrun --nproc-per-node 2 train.py"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(digits)
    loader = DataLoader(digits, batch_size=64, sampler=sampler)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9)

    step, epoch = 0, 0
    while step < options.steps:
        sampler.set_epoch(epoch)
        for images, targets in loader:
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == options.steps:
                break
        epoch += 1
        if dist.get_rank() == 0:
            print(f"epoch {epoch}, step {step}: loss {loss.item():.4f}")
    if dist.get_rank() == 0:
        options.output.mkdir(exist_ok=True)
        torch.save(network.state_dict(), options.output / "weights.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
