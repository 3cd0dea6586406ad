"""A loop as people write it; its first argument is a mood of ``sick_digits``, its second how many steps it makes. It knows nothing of Chainrule."""

import sys

import sick_digits
import torch
from torch import nn

mood, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
pixels, labels = sick_digits.digits()
model = sick_digits.network(mood)
optimizer = torch.optim.Adam(model.parameters(), lr=sick_digits.rate(mood))
for step in range(steps):
    picked = torch.randint(0, len(pixels), (64,))
    if mood != "uncleared":
        optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(pixels[picked]), labels[picked])
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        model.eval()
        with torch.no_grad():
            print(f"step {step} accuracy {(model(pixels).argmax(1) == labels).float().mean():.3f}")
        model.train()
