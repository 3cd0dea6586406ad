"""Dead units brought back to life, and an optimizer's memory of the past forgotten. In place, between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from workers.repair.anatomy import ELEMENTWISE, NORMS, Unfit, fans_of, is_plain, is_sequence, reason_against, width_of
from workers.repair.drawing import he_std, normal
from workers.repair.patches import PatchError

# Running sums of gradients and of their squares, whatever an optimizer calls them. Not here: step sizes (Rprop) and other settings.
MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "exp_avg_diff", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum",
     "row_var", "col_var", "variance", "exp_avg_sq_row", "exp_avg_sq_col", "momentum", "prev"}
)  # fmt: skip
PASSES_UNITS = (*ELEMENTWISE, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
# They work on each channel alone, so unit u of the layer is channel u behind them too.
PASSES_CHANNELS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
                   nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample)  # fmt: skip
NORM_START = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@torch.no_grad()
def revive(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, dead: Mapping[str, Sequence[int] | None], *, seed: int
) -> int:
    """Draws the incoming weights of dead units anew; how many units. Live rows and their moments stay bit for bit.

    ``dead``: layer (a Linear or Conv) -> its dead units, None for all. Biases become 0, and what a norm behind the layer has of a unit what it
    had at first. Where the next layer is certain (both in nn.Sequential, nothing in between that mixes units) its weights for the units become
    0, so that nothing changes at once: they learn what to make of the units. Moments of all that was written become 0; the count of steps stays.
    Same seed, same weights. Raises PatchError, before anything is changed, for what cannot be revived.
    """
    rows = {name: _units_of(model, name, units) for name, units in dead.items()}
    for name, units in rows.items():
        layer = model.get_submodule(name)
        fresh = normal(_incoming(layer, units).shape, he_std(fans_of(layer)[0]), seed, f"{name}.weight")
        assert isinstance(layer.weight, nn.Parameter)
        _write(optimizer, layer.weight, _rows_of(layer, units), fresh)
        if isinstance(layer.bias, nn.Parameter):
            _write(optimizer, layer.bias, (units,), 0.0)
        norms, following = _behind(model, name)
        for norm in norms:
            _restart(optimizer, norm, units)
        if following is not None:
            columns = _columns(following, units, width_of(layer))
            assert isinstance(following.weight, nn.Parameter)
            _write(optimizer, following.weight, columns, 0.0)
    return sum(len(units) for units in rows.values())


def _units_of(model: nn.Module, name: str, units: Sequence[int] | None) -> Tensor:
    try:
        problem = reason_against(model, name)
    except Unfit as unfit:
        problem = str(unfit)
    if problem is None and not is_plain(model.get_submodule(name)):
        problem = f"a {type(model.get_submodule(name)).__name__} is no Linear or Conv"
    if (
        problem is None
        and _is_transposed(model.get_submodule(name))
        and getattr(model.get_submodule(name), "groups", 1) != 1
    ):
        problem = "it is a transposed convolution in groups"
    if problem is None:
        width = width_of(model.get_submodule(name))
        wrong = next((unit for unit in units or () if not 0 <= unit < width), None)
        problem = None if wrong is None else f"it has no unit {wrong}; units are 0 to {width - 1}"
    if problem is not None:
        raise PatchError(None, f"cannot revive units of {name}: {problem}")
    return torch.tensor(sorted(set(range(width) if units is None else units)), dtype=torch.long)


def _is_transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))


def _rows_of(layer: nn.Module, units: Tensor) -> tuple[Tensor | slice, ...]:
    """Where the incoming weights of ``units`` are. Of a transposed convolution: (inputs, outputs, *field)."""
    return (slice(None), units) if _is_transposed(layer) else (units,)


def _incoming(layer: nn.Module, units: Tensor) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    found: Tensor = layer.weight[_rows_of(layer, units)]
    return found


def _write(
    optimizer: torch.optim.Optimizer | None,
    parameter: nn.Parameter,
    where: tuple[Tensor | slice, ...],
    value: Tensor | float,
) -> None:
    """Also forgets the moments there, of those that are kept element by element."""
    parameter[where] = value.to(parameter) if isinstance(value, Tensor) else value
    for name, moment in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
        if name in MOMENTS and isinstance(moment, Tensor) and moment.shape == parameter.shape:
            moment[where] = 0.0


def _restart(optimizer: torch.optim.Optimizer | None, norm: nn.Module, units: Tensor) -> None:
    for name, value in NORM_START.items():
        held = getattr(norm, name, None)
        if isinstance(held, nn.Parameter):
            _write(optimizer, held, (units,), value)
        elif isinstance(held, Tensor):
            held[units] = value


# --- what follows a layer ---------------------------------------------------------------------------------------------


def _behind(model: nn.Module, name: str) -> tuple[list[nn.Module], nn.Module | None]:
    """(norms, the next Linear or Conv) behind a layer, as far as they are certain."""
    layer = model.get_submodule(name)
    passing = PASSES_UNITS if isinstance(layer, nn.Linear) else (*PASSES_UNITS, *PASSES_CHANNELS)
    norms: list[nn.Module] = []
    flat = False
    for path, module in _followers(model, name):
        if next(module.parameters(), None) is not None and reason_against(model, path) is not None:
            break
        if isinstance(module, NORMS) and _is_by_unit(module, width_of(layer)) and not flat:
            norms.append(module)
        elif is_plain(module):
            return norms, module if _takes_units(module, layer, flat) else None
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif not isinstance(module, passing):
            break
    return norms, None


def _takes_units(following: nn.Module, layer: nn.Module, flat: bool) -> bool:
    """Whether the inputs of ``following`` are certainly the units of ``layer``: channels of a Conv; of a Linear features, or whole blocks behind
    a Flatten. A Linear right behind a Conv works on the last dimension, which is no channel."""
    if isinstance(following, nn.Linear):
        if isinstance(layer, nn.Linear):
            return following.in_features == width_of(layer)
        return flat and following.in_features % width_of(layer) == 0
    kept = not flat and not isinstance(layer, nn.Linear) and not _is_transposed(following)
    return (
        kept and getattr(following, "groups", None) == 1 and getattr(following, "in_channels", None) == width_of(layer)
    )


def _followers(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """What runs behind the module, in order, as long as everything around is a plain Sequential."""
    while name:
        parent, _, own = name.rpartition(".")
        sequence = model.get_submodule(parent)
        if not is_sequence(sequence):
            return
        names = list(sequence._modules)
        for later in names[names.index(own) + 1 :]:
            yield from _leaves(f"{parent}.{later}" if parent else later, sequence.get_submodule(later))
        name = parent


def _leaves(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not is_sequence(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _leaves(f"{path}.{name}", child)


def _is_by_unit(norm: nn.Module, width: int) -> bool:
    """Whether all that it has is by unit: a layer norm over (channels, height, width) is not."""
    held = (getattr(norm, name, None) for name in NORM_START)
    return all(tuple(tensor.shape) == (width,) for tensor in held if isinstance(tensor, Tensor))


def _columns(following: nn.Module, units: Tensor, width: int) -> tuple[Tensor | slice, ...]:
    """Where the weights of ``following`` for ``units`` are; behind a Flatten each unit has a block of them."""
    inputs = following.in_features if isinstance(following, nn.Linear) else following.in_channels
    assert isinstance(inputs, int)
    block = inputs // width
    return (slice(None), (units[:, None] * block + torch.arange(block)).flatten())


# --- forgetting -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reset_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Puts the optimizer's state of ``parameters`` back to what it is before their first step, so that a rate that climbs anew meets moments of
    the present only; how many parameters had one. Corrections for the first steps (Adam's) begin again too.
    """
    found = 0
    for parameter in parameters:
        state = optimizer.state.get(parameter)
        if not state:
            continue
        found += 1
        for name, value in state.items():
            if isinstance(value, Tensor) and name in (MOMENTS | {"step"}):
                value.zero_()
            elif name == "mu_product" and isinstance(value, Tensor):  # NAdam's: a product
                value.fill_(1.0)
            elif name in (MOMENTS | {"step"}) and isinstance(value, int | float):
                state[name] = type(value)(0)
    return found
