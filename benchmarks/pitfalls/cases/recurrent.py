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
NARROW = LSTM.but(partial(Recurrent, nn.LSTM, 8, 10, width=8), steps=300)
RELU = LSTM.but(partial(relu, 1.0), data=halves, optimizer=adam(3e-3), clip_norm=1.0, steps=300)
UNCLIPPED = RELU.but(clip_norm=None)

CASES = (
    FAMILY.sick(
        "relu_rnn_explodes",
        "exploding_gradient",
        "a ReLU RNN over 16 steps whose recurrent weights make the state four times as large",
        GOOD,
        UNCLIPPED,
        UNCLIPPED.but(partial(relu, 4.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "rnn_chaos",
        "saturated_activation",
        "recurrent weights twelve times too large: tanh at its ends",
        GOOD,
        RNN,
        RNN.but(partial(plain, 12.0)),
        ("bad_init",),
    ),
    FAMILY.sick(
        "lstm_rate",
        "lr_too_high",
        "an LSTM under Adam with a rate of 1",
        GOOD,
        LSTM,
        LSTM.but(optimizer=adam(1.0)),
        ("oscillating_loss",),
    ),
    FAMILY.sick(
        "gru_slow",
        "lr_too_low",
        "a GRU under SGD with a rate of 1e-4",
        GOOD,
        GRU.but(optimizer=sgd(0.5, 0.5), steps=300),
        GRU.but(optimizer=sgd(1e-4, 0.5), steps=300),
        ("slow_convergence",),
    ),
    FAMILY.sick(
        "detached",
        "frozen_params",
        "states are detached before the head: the recurrent layer never gets a gradient",
        GOOD,
        NARROW,
        NARROW.but(partial(Recurrent, nn.LSTM, 8, 10, width=8, detached=True)),
    ),
    FAMILY.sick(
        "burst",
        "loss_spike",
        "the rate is 300-fold for eight steps after 60 % of the run",
        GOOD,
        RNN,
        RNN.but(schedule=burst(0.6, 0.64, 300.0)),
        ("lr_too_high",),
    ),
    FAMILY.sick(
        "bad_rows",
        "loss_spike",
        "eleven batches with inputs a thousandfold, without clipping",
        GOOD,
        UNCLIPPED,
        UNCLIPPED.but(disturb=window(180, 190, inputs=1000.0)),
    ),
    FAMILY.sick(
        "uncleared_lstm",
        "grad_accumulation",
        "gradients are never cleared",
        GOOD,
        LSTM.but(optimizer=sgd(0.5, 0.5), steps=300),
        LSTM.but(optimizer=sgd(0.5, 0.5), clears=False, steps=300),
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
