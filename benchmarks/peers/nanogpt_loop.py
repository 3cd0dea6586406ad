"""The peer of the language benchmark: the loop and the model of nanoGPT's CPU recipe for tinyshakespeare, written anew and no larger than it must be.

4 layers, 4 heads, width 128, no biases, tied weights; 2,000 steps of 12 random blocks of 64 characters; AdamW (0.9, 0.99) with decay 0.1 on matrices,
1e-3 by cosine to 1e-4 after 100 steps of warm-up, gradients clipped to 1. Instead of an estimate from a few random blocks it measures the whole
held-out part, as our side does. Prints a JSON line an evaluation: step, seconds since the process began, loss.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, BLOCK = 4, 4, 128, 64
BATCH, STEPS, WARMUP, PEAK, LAST = 12, 2000, 100, 1e-3, 1e-4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attention, self.projection = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, HEADS, C // HEADS).transpose(1, 2) for part in self.attention(self.norm1(x_BTC)).split(C, 2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.projection(mixed.transpose(1, 2).reshape(B, T, C))
        found: Tensor = x_BTC + self.down(functional.gelu(self.up(self.norm2(x_BTC))))
        return found


class Gpt(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return LAST + 0.5 * (PEAK - LAST) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Tensor) -> float:
    """Over every token of the held-out part but the first and a rest shorter than a block."""
    blocks = (len(data) - 1) // BLOCK
    inputs, targets = data[: blocks * BLOCK].view(-1, BLOCK), data[1 : blocks * BLOCK + 1].view(-1, BLOCK)
    total = 0.0
    for start in range(0, blocks, 96):
        logits = model(inputs[start : start + 96])
        target = targets[start : start + 96]
        total += functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    return total / targets.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1337)
    arguments = parser.parse_args()
    began = psutil.Process().create_time()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    text = arguments.text.read_text(encoding="utf-8")
    numbers = {character: index for index, character in enumerate(sorted(set(text)))}
    data = torch.tensor([numbers[character] for character in text])
    train, held_out = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    model = Gpt(len(numbers))
    groups = [
        {"params": [parameter for parameter in model.parameters() if parameter.ndim > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in model.parameters() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        starts = torch.randint(len(train) - BLOCK, (BATCH,))
        blocks = torch.stack([train[start : start + BLOCK + 1] for start in starts.tolist()])
        loss = functional.cross_entropy(model(blocks[:, :-1]).flatten(0, 1), blocks[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % arguments.evaluate_every == 0:
            value = held_out_loss(model, held_out)
            print(json.dumps({"step": step + 1, "seconds": time.time() - began, "loss": value}), flush=True)


if __name__ == "__main__":
    main()
