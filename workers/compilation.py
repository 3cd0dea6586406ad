"""Compiling models with torch.compile, in place: names, state and hooks stay, only ``forward`` computes faster."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.exc import GPUTooOldForTriton, InductorError, TritonMissing

from workers.batch_norm import SynchronisedBatchNorm
from workers.sources.problems import BadDataError

# Of modules of one class, all shapes together: training, evaluation and a batch of one sample have their own, and with
# batch norm every group of workers too.
PROGRAMS = 64


def compile_in_place(modules: Sequence[nn.Module]) -> None:
    """Compiles the ``forward`` of each module when it is first called; nothing happens to those that were given before.

    Not ``Module.compile``: that leaves modules of torch's own (a Sequential at the root, say) uncompiled without a word.
    The first call raises BadDataError where nothing can be compiled.
    """
    torch._dynamo.config.recompile_limit = PROGRAMS
    codes: dict[type, types.CodeType] = {}
    for module in modules:
        if "forward" not in vars(module):
            module.forward = _compiled(module, codes)


def _compiled(module: nn.Module, codes: dict[type, types.CodeType]) -> Callable[..., Any]:
    original = module.forward
    norms = [inner for inner in module.modules() if isinstance(inner, SynchronisedBatchNorm)]
    singles_have_a_program: bool | None = None

    def call(*inputs: Any, **named: Any) -> Any:
        return original(*inputs, **named)

    # Programs are remembered, and their number is limited, by code object. So each class has its own: the layers of a
    # transformer share a program.
    code = codes.setdefault(type(module), call.__code__.replace())
    own = types.FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)
    compiled = torch.compile(own)

    def forward(*inputs: Any, **named: Any) -> Any:
        nonlocal singles_have_a_program
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor) and value.dim() > 0]
        single = bool(tensors) and len(tensors[0]) == 1
        if singles_have_a_program is None:
            singles_have_a_program = single
        # torch compiles for one sample apart. When that is the odd last batch of one worker, the others would wait for it.
        if single and not singles_have_a_program and not (module.training and _communicate(norms)):
            return original(*inputs, **named)
        for value in tensors:
            # One program for any other number, from the start: it differs between batches and workers.
            torch._dynamo.maybe_mark_dynamic(value, 0)
        try:
            return compiled(*inputs, **named)
        except (InductorError, TritonMissing, GPUTooOldForTriton) as error:
            reason = str(error).partition("\n")[0]
            raise BadDataError("training.compile", f"the model cannot be compiled here: {reason}") from error

    return forward


def _communicate(norms: Sequence[SynchronisedBatchNorm]) -> bool:
    """Whether a training pass all-reduces: between the gradients' collectives, and there in one order only if it is compiled
    on all workers or on none."""
    return any(norm.world_size > 1 for norm in norms)
