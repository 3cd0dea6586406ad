"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.kinds.language import Samples
from workers.language.documents import beginning
from workers.language.vocabulary import encode


def complete(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], spec: Samples, context: int, device: torch.device
) -> list[list[str]]:
    """``spec.count`` completions of each prompt. Always the same for the same weights; draws from a generator of its own.

    Every rank makes the same passes, as FSDP needs it: texts that have ended are cut afterwards.
    """
    generator = torch.Generator().manual_seed(0)
    begin, found = beginning(tokenizer), []
    for prompt in encode(tokenizer, prompts):
        tokens = torch.tensor([begin + prompt] * spec.count, device=device)
        new = generate(model, tokens, spec, context, generator)
        found.append([_text(tokenizer, row) for row in new.tolist()])
    return found


@torch.no_grad()
def generate(model: nn.Module, tokens: Tensor, spec: Samples, context: int, generator: torch.Generator) -> Tensor:
    """(B, T) -> (B, max_new_tokens). When the ``context`` is full, its older half is forgotten."""
    from transformers import DynamicCache

    first = tokens.shape[1]
    unread, cache, read = tokens[:, -context:], DynamicCache(), 0
    for _ in range(spec.max_new_tokens):
        if read + unread.shape[1] > context:
            unread, cache, read = tokens[:, -max(1, context // 2) :], DynamicCache(), 0
        logits = model(unread, cache=cache)
        read += unread.shape[1]
        unread = drawn(logits, spec, generator)
        tokens = torch.cat([tokens, unread], dim=1)
    return tokens[:, first:]


def drawn(logits: Tensor, spec: Samples, generator: torch.Generator) -> Tensor:
    """(B, V) -> (B, 1)"""
    if spec.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled = logits.float().cpu() / spec.temperature
    if spec.top_k is not None and spec.top_k < scaled.shape[1]:
        smallest = scaled.topk(spec.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    return torch.multinomial(scaled.softmax(-1), 1, generator=generator).to(logits.device)


def _text(tokenizer: Any, tokens: list[int]) -> str:
    end = tokenizer.eos_token_id
    text: str = tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
    return text
