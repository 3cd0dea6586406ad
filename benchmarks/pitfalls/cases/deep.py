"""Deep networks on digits: where gradients vanish and explode, and where they only look so."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import digits
from benchmarks.pitfalls.faults import warmup
from benchmarks.pitfalls.models import Activation, cnn, mlp, residual_net, started
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("deep")
GOOD = Goal("accuracy", at_least=0.85)


def deep(activation: Activation, hidden: int, gain: float = 1.0, width: int = 48) -> nn.Module:
    """Weights of deviation ``gain`` / sqrt(fan-in), no biases."""

    def start(weight: Tensor) -> None:
        nn.init.normal_(weight, std=gain / weight[0].numel() ** 0.5)

    return started(mlp(64, 10, width, hidden, activation), start)


def as_written(activation: Activation, hidden: int, width: int = 48) -> nn.Module:
    """With PyTorch's own initial weights."""
    return mlp(64, 10, width, hidden, activation)


class Functional(nn.Module):
    """A deep network whose activation is a function call that no module shows."""

    def __init__(self, function: object, hidden: int = 10, width: int = 48) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(64 if i == 0 else width, width) for i in range(hidden))
        self.head = nn.Linear(width, 10)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.function(layer(x))  # type: ignore[operator]
        return self.head(x)  # type: ignore[no-any-return]


def frozen_stack() -> nn.Module:
    """All layers but the last two belong to a backbone that does not train."""
    model = residual_net(64, 10, blocks=6)
    for part in list(model)[:-3]:
        part.requires_grad_(False)
    return model


def linear_stack(gain: float) -> nn.Module:
    return deep(nn.Identity, 6, gain)


RELU10 = recipe(
    partial(deep, nn.ReLU, 10, 2**0.5), digits, loss=functional.cross_entropy, optimizer=adam(1e-3), steps=250
)
SGD10 = RELU10.but(optimizer=sgd(0.02, 0.5), steps=300)
TANH8 = RELU10.but(partial(deep, nn.Tanh, 8, 1.2), optimizer=sgd(0.05))
DEEP_CNN = recipe(
    partial(cnn, width=8, layers=8, norm=True),
    lambda: digits().shaped(1, 8, 8),
    loss=functional.cross_entropy,
    optimizer=adam(3e-3),
    steps=200,
)
RESIDUAL = recipe(partial(residual_net, 64, 10), digits, loss=functional.cross_entropy, optimizer=adam(1e-3), steps=200)
LINEAR = RELU10.but(partial(linear_stack, 1.0), optimizer=sgd(0.05))

CASES = (
    FAMILY.sick(
        "sigmoid10",
        "vanishing_gradient",
        "ten sigmoid layers in place of ReLUs",
        GOOD,
        SGD10,
        SGD10.but(partial(deep, nn.Sigmoid, 10, 2**0.5)),
    ),
    FAMILY.sick(
        "sigmoid14_adam",
        "vanishing_gradient",
        "fourteen sigmoid layers in place of ReLUs, under Adam",
        GOOD,
        RELU10.but(partial(deep, nn.ReLU, 14, 2**0.5)),
        RELU10.but(partial(deep, nn.Sigmoid, 14, 2**0.5)),
    ),
    FAMILY.sick(
        "functional_sigmoid",
        "vanishing_gradient",
        "ten sigmoids that are function calls",
        GOOD,
        SGD10.but(partial(Functional, torch.relu), steps=450),
        SGD10.but(partial(Functional, torch.sigmoid), steps=450),
    ),
    FAMILY.sick(
        "tanh_small",
        "vanishing_gradient",
        "eight tanh layers with weights four times too small",
        GOOD,
        TANH8,
        TANH8.but(partial(deep, nn.Tanh, 8, 0.3)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "relu_small",
        "vanishing_gradient",
        "ten ReLU layers with weights five times too small",
        GOOD,
        SGD10,
        SGD10.but(partial(deep, nn.ReLU, 10, 0.3)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "cnn_without_norm",
        "vanishing_gradient",
        "eight convolutions as PyTorch begins them, SGD, without the batch norm that makes up for it",
        GOOD,
        DEEP_CNN.but(optimizer=sgd(0.05)),
        DEEP_CNN.but(partial(cnn, width=8, layers=8), optimizer=sgd(0.05)),
    ),
    FAMILY.sick(
        "relu_large",
        "exploding_gradient",
        "ten ReLU layers with weights three times too large",
        GOOD,
        SGD10,
        SGD10.but(partial(deep, nn.ReLU, 10, 4.5)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "linear_large",
        "exploding_gradient",
        "six layers without activation, weights three times too large",
        GOOD,
        LINEAR,
        LINEAR.but(partial(linear_stack, 3.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "relu_huge",
        "exploding_gradient",
        "weights drawn with deviation 1 whatever the fan-in",
        GOOD,
        SGD10,
        SGD10.but(partial(deep, nn.ReLU, 10, 48**0.5)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "tanh_saturated",
        "saturated_activation",
        "eight tanh layers with weights of deviation 2",
        GOOD,
        TANH8,
        TANH8.but(partial(deep, nn.Tanh, 8, 14.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "sigmoid_inputs",
        "saturated_activation",
        "raw pixels, times 20, into sigmoids",
        GOOD,
        RELU10.but(partial(as_written, nn.Sigmoid, 1), optimizer=sgd(0.5)),
        RELU10.but(partial(as_written, nn.Sigmoid, 1), data=lambda: digits(True).mapped(20.0), optimizer=sgd(0.5)),
        ("unnormalised_input",),
    ),
    FAMILY.sick(
        "saddle",
        "plateau",
        "six linear layers that begin at a saddle: every gradient is a product of small weights",
        GOOD,
        LINEAR,
        LINEAR.but(partial(linear_stack, 0.15)),
        ("bad_init", "vanishing_gradient"),
    ),
    FAMILY.sick(
        "zero_weights",
        "bad_init",
        "all weights are zero",
        GOOD,
        SGD10,
        SGD10.but(partial(deep, nn.ReLU, 10, 0.0)),
    ),
    FAMILY.sick(
        "dead_deep",
        "dying_relu",
        "nine steps with a rate 300 times too high put out the ReLUs, then all is normal",
        GOOD,
        SGD10,
        SGD10.but(schedule=lambda share: 300.0 if share < 0.03 else 1.0),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "optimizer_lacks_body",
        "frozen_params",
        "the optimizer has the last layer only",
        GOOD,
        SGD10,
        SGD10.but(optimizer=sgd(0.02, 0.5, only=lambda name: name.startswith("20."))),
    ),
    FAMILY.sick(
        "decay_huge",
        "over_regularised",
        "weight decay 3.0 under SGD",
        GOOD,
        SGD10,
        SGD10.but(optimizer=sgd(0.02, 0.5, decay=3.0)),
    ),
    # healthy
    FAMILY.healthy("residual", "twelve residual blocks: norms differ by much from layer to layer", GOOD, RESIDUAL),
    FAMILY.healthy(
        "residual_zero",
        "residual branches begin at zero: half of the gradients are exactly 0 at first",
        GOOD,
        RESIDUAL.but(partial(residual_net, 64, 10, zero=True)),
    ),
    FAMILY.healthy(
        "shallow_sigmoid",
        "two sigmoid layers, slow at first, that learn",
        GOOD,
        RELU10.but(partial(as_written, nn.Sigmoid, 2), optimizer=adam(5e-3)),
    ),
    FAMILY.healthy("deep_cnn", "eight convolutions behind batch norm", GOOD, DEEP_CNN),
    FAMILY.healthy("deep_selu", "ten SELU layers", GOOD, RELU10.but(partial(deep, nn.SELU, 10))),
    FAMILY.healthy(
        "frozen_backbone",
        "a backbone of six residual blocks, frozen on purpose",
        GOOD,
        RESIDUAL.but(frozen_stack, optimizer=adam(1e-2)),
    ),
    FAMILY.healthy(
        "deep_warmup",
        "a deep ReLU network with a warm-up over a third of the run",
        GOOD,
        RELU10.but(schedule=warmup(0.3), warmup_steps=75),
    ),
    FAMILY.healthy("clipped", "gradients clipped at every step", GOOD, SGD10.but(optimizer=sgd(0.2), clip_norm=0.5)),
)
