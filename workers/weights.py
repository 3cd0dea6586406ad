"""Questions about a model's weights as a whole."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def finite(model: nn.Module) -> bool:
    return bool(torch.stack(torch._foreach_norm(list(model.parameters()))).isfinite().all())


def parameters_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
