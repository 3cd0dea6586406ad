"""A loop whose learning rate, its first argument, may be far too high; the second is how many steps it makes, the third how long each takes
at least. It prints how well it does at last. It knows nothing of Chainrule."""

import sys
import time

import sick_digits
import torch
from torch import nn

rate, steps, seconds = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
torch.set_num_threads(1)
pixels, labels = sick_digits.digits()
hidden = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh())]
model = nn.Sequential(*hidden, nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=rate)
schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9999)
rates = []
for _ in range(steps):
    began = time.perf_counter()
    picked = torch.randint(0, len(pixels), (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(pixels[picked]), labels[picked])
    loss.backward()
    optimizer.step()
    schedule.step()
    rates.append(schedule.get_last_lr()[0])
    time.sleep(max(0.0, seconds - (time.perf_counter() - began)))
model.eval()
with torch.no_grad():
    print(f"accuracy {(model(pixels).argmax(1) == labels).float().mean():.3f} loss {loss.item():.4f}")
print(f"rates {sum(rates):.6f} last {rates[-1]:.6f}")
