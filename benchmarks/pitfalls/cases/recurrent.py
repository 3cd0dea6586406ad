"""Recurrent networks that read digits row by row, or pixel by pixel."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional

from benchmarks.pitfalls.case import Goal
from benchmarks.pitfalls.data import Pair, digits
from benchmarks.pitfalls.faults import burst, window
from benchmarks.pitfalls.models import Recurrent
from benchmarks.pitfalls.recipe import Family, adam, recipe, sgd

FAMILY = Family("recurrent")
GOOD = Goal("accuracy", at_least=0.8)


def rows() -> Pair:
    """(N, 8, 8): eight steps."""
    return digits().shaped(8, 8)


def halves() -> Pair:
    """(N, 16, 4): sixteen steps."""
    return digits().shaped(16, 4)


def plain(gain: float, inputs: int = 8, kind: type[nn.RNNBase] = nn.RNN) -> nn.Module:
    """Recurrent weights are ``gain`` times an orthogonal matrix."""
    model = Recurrent(kind, inputs, 10)
    nn.init.orthogonal_(model.recurrent.weight_hh_l0, gain)  # type: ignore[arg-type]
    return model


def relu(gain: float) -> nn.Module:
    model = Recurrent(partial(nn.RNN, nonlinearity="relu"), 4, 10)  # type: ignore[arg-type]
    nn.init.eye_(model.recurrent.weight_hh_l0)  # type: ignore[arg-type]
    model.recurrent.weight_hh_l0.data.mul_(gain)  # type: ignore[operator]
    return model


def biased(bias: float) -> nn.Module:
    """A GRU whose update gates begin at sigmoid(``bias``): 1 keeps the state as it was."""
    model = Recurrent(nn.GRU, 8, 10)
    for name, parameter in model.recurrent.named_parameters():
        if "bias" in name:
            parameter.data[48:96] = bias
    return model


LSTM = recipe(partial(Recurrent, nn.LSTM, 8, 10), rows, loss=functional.cross_entropy, optimizer=adam(1e-2), steps=200)
GRU = LSTM.but(partial(Recurrent, nn.GRU, 8, 10))
RNN = LSTM.but(partial(plain, 1.0), optimizer=adam(3e-3))
RELU = LSTM.but(partial(relu, 1.0), data=halves, optimizer=adam(3e-3), clip_norm=1.0, steps=300)

CASES = (
    FAMILY.sick(
        "relu_rnn_explodes",
        "exploding_gradient",
        "a ReLU RNN over 16 steps whose recurrent weights double the state",
        GOOD,
        RELU,
        RELU.but(partial(relu, 2.0), clip_norm=None, optimizer=sgd(0.01)),
        ("bad_init", "nonfinite_gradient", "lr_too_high"),
    ),
    FAMILY.sick(
        "rnn_chaos",
        "saturated_activation",
        "recurrent weights five times too large: tanh at its ends",
        GOOD,
        RNN,
        RNN.but(partial(plain, 12.0)),
        ("bad_init", "exploding_gradient"),
    ),
    FAMILY.sick(
        "lstm_rate",
        "lr_too_high",
        "an LSTM under Adam with a rate of 1",
        GOOD,
        LSTM,
        LSTM.but(optimizer=adam(1.0)),
        ("oscillating_loss", "exploding_gradient", "saturated_activation"),
    ),
    FAMILY.sick(
        "gru_slow",
        "lr_too_low",
        "a GRU under SGD with a rate of 1e-4",
        GOOD,
        GRU,
        GRU.but(optimizer=sgd(1e-4)),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "detached",
        "frozen_params",
        "states are detached before the head: the recurrent layer never gets a gradient",
        GOOD,
        LSTM.but(optimizer=adam(3e-3)),
        LSTM.but(partial(Recurrent, nn.LSTM, 8, 10, width=8, detached=True), optimizer=adam(3e-3)),
    ),
    FAMILY.sick(
        "burst",
        "loss_spike",
        "the rate is a thousandfold for six steps after half of the run",
        GOOD,
        RNN,
        RNN.but(schedule=burst(0.6, 0.64, 300.0)),
        ("lr_too_high", "exploding_gradient", "saturated_activation"),
    ),
    FAMILY.sick(
        "bad_rows",
        "loss_spike",
        "ten batches with other labels and inputs a hundredfold, under SGD without clipping",
        GOOD,
        RELU.but(clip_norm=None),
        RELU.but(clip_norm=None, disturb=window(180, 190, inputs=1000.0)),
        ("exploding_gradient", "nonfinite_gradient", "dying_relu"),
    ),
    FAMILY.sick(
        "uncleared_lstm",
        "grad_accumulation",
        "gradients are never cleared",
        GOOD,
        LSTM.but(optimizer=sgd(0.5, 0.5), steps=300),
        LSTM.but(optimizer=sgd(0.5, 0.5), clears=False, steps=300),
        ("exploding_gradient", "lr_too_high", "oscillating_loss", "saturated_activation"),
    ),
    # healthy
    FAMILY.healthy("lstm", "an LSTM whose gates saturate where they should", GOOD, LSTM),
    FAMILY.healthy("gru", "a GRU", GOOD, GRU),
    FAMILY.healthy(
        "gru_long_memory",
        "update gates that begin nearly shut: small gradients in front",
        GOOD,
        LSTM.but(partial(biased, 2.0), steps=250),
    ),
    FAMILY.healthy("rnn_clipped", "a ReLU RNN over 16 steps, clipped nearly always", GOOD, RELU.but(clip_norm=0.3)),
    FAMILY.healthy(
        "lstm_small_batch",
        "eight sequences a step: a noisy loss",
        GOOD,
        LSTM.but(batch=8, steps=400, optimizer=adam(5e-3)),
    ),
)
