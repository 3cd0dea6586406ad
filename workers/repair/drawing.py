"""New weights. What is drawn follows from (seed, name of the parameter) alone: every rank, on whatever device, draws the same.

He: He et al. 2015, N(0, 2 / inputs). Xavier: Glorot and Bengio 2010, N(0, 2 / (inputs + outputs)), for tanh 5/3 of its deviation. LeCun: LeCun et
al. 1998, N(0, 1 / inputs), which keeps SELU self-normalising (Klambauer et al. 2017). Identity: Le, Jaitly and Hinton 2015. Orthogonal: Saxe et al.
2014. Forget bias 1: Jozefowicz et al. 2015.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.repair.anatomy import NORMS, RECURRENT, Edits, Unfit, fans_of, is_plain

PLAIN_METHODS = ("he", "xavier", "lecun", "orthogonal")
METHODS = (*PLAIN_METHODS, "identity", "normal", "norm")
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}
# Which block of rows keeps the state for longer when its bias is 1: the forget gate of (i, f, g, o), the update gate of (r, z, n).
KEEPING = {4: 1, 3: 1}


def generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(shape: torch.Size | tuple[int, ...], std: float, seed: int, name: str) -> Tensor:
    """N(0, std²), float32 on the CPU."""
    return torch.randn(shape, generator=generator(seed, name)) * std


def reinitialise(edits: Edits, module: nn.Module, where: str, method: str, gain: float, seed: int) -> None:
    """Raises Unfit where ``method`` is none for ``module``. ``gain`` multiplies what is drawn; of "normal" it is the standard deviation."""
    if method in PLAIN_METHODS and is_plain(module):
        values = {"weight": gain * _plain(module, where, method, seed)}
        values |= {"bias": torch.zeros(module.bias.shape)} if isinstance(module.bias, Tensor) else {}
    elif method in ("identity", "orthogonal") and isinstance(module, RECURRENT):
        values = _recurrent(module, where, method, gain, seed)
    elif method == "normal" and isinstance(module, nn.Embedding | nn.EmbeddingBag):
        values = {"weight": normal(module.weight.shape, gain, seed, f"{where}.weight")}
        if module.padding_idx is not None:
            values["weight"][module.padding_idx] = 0.0
    elif method == "norm" and isinstance(module, NORMS):
        values = _norm(module)
    else:
        raise Unfit(f"{method!r} is no way to draw the weights of a {type(module).__name__}")
    held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    for name, value in values.items():
        edits.write(held[name], value)


def _plain(layer: nn.Module, where: str, method: str, seed: int) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    shape, (fan_in, fan_out) = layer.weight.shape, fans_of(layer)
    if method == "orthogonal":
        return nn.init.orthogonal_(torch.empty(shape), generator=generator(seed, f"{where}.weight"))
    variance = {"he": 2 / max(1, fan_in), "xavier": 2 / max(1, fan_in + fan_out), "lecun": 1 / max(1, fan_in)}[method]
    return normal(shape, math.sqrt(variance), seed, f"{where}.weight")


def _recurrent(module: nn.Module, where: str, method: str, gain: float, seed: int) -> dict[str, Tensor]:
    """Blocks of a gate each: from state to state orthogonal or the identity, from inputs Xavier; biases 0, of the gate that keeps the state 1."""
    gates = GATES.get(_base(module))
    if gates is None or (method == "identity" and gates > 1):
        raise Unfit(f"{method!r} is no way to draw the weights of a {type(module).__name__}")
    values: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("bias"):
            value = torch.zeros(parameter.shape)
            if gates in KEEPING and name.startswith("bias_ih"):  # the other one, bias_hh, is added to it
                value.view(gates, -1)[KEEPING[gates]] = 1.0
        elif name.startswith("weight_hh"):
            value = gain * _square_blocks(parameter, gates, method, seed, f"{where}.{name}")
        else:
            rows, columns = parameter.shape[0] // (1 if name.startswith("weight_hr") else gates), parameter.shape[1]
            value = normal(parameter.shape, math.sqrt(2 / (rows + columns)), seed, f"{where}.{name}")
        values[name] = value
    return values


def _square_blocks(parameter: Tensor, gates: int, method: str, seed: int, name: str) -> Tensor:
    rows, columns = parameter.shape[0] // gates, parameter.shape[1]
    if method == "identity":
        return torch.eye(rows, columns)
    source = generator(seed, name)
    return torch.cat([nn.init.orthogonal_(torch.empty(rows, columns), generator=source) for _ in range(gates)])


def _base(module: nn.Module) -> str:
    """'LSTM' also of a subclass."""
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in GATES), "")


def _norm(module: nn.Module) -> dict[str, Tensor]:
    start: Mapping[str, float] = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    values = {name: torch.full(held[name].shape, value) for name, value in start.items() if name in held}
    return values | ({"num_batches_tracked": torch.zeros(())} if "num_batches_tracked" in held else {})
