"""Sick trainings and healthy ones that look like them. ``CASES[name]``: the codes of which one must come first (none: healthy), and a function
that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.trainings import Data, Plan, diabetes, digits, mlp, train
from workers.watch.record import Record

Made = Callable[[int], Record]  # of a seed
functional = nn.functional


def adam(rate: float, **settings: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, rate, **settings)


def sgd(rate: float, **settings: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, rate, **settings)


def of(model: Callable[[], nn.Module], data: Callable[[], Data] = digits, **plan: Any) -> Made:
    def made(seed: int) -> Record:
        torch.manual_seed(seed)
        return train(model(), data(), Plan(seed=seed, **plan))

    return made


# --- models -----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Branches end in zeros: at the first step nothing reaches what lies before."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = nn.ReLU()
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = inputs + self.outer(self.activation(self.inner(inputs)))
        return result


def initialised(model: nn.Module, fill: Callable[[Tensor], Any], bias: float | None = None) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fill(module.weight.data)
            if bias is not None:
                nn.init.constant_(module.get_parameter("bias"), bias)
    return model


def he(model: nn.Module) -> nn.Module:
    return initialised(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"), 0.0)


def dead() -> nn.Module:
    model = mlp(3)
    model[2].bias.data.fill_(-20.0)  # type: ignore[operator]
    return model


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Recurrent(nn.Module):
    """Reads the picture row by row. Gates saturate as they should."""

    def __init__(self, kind: type[nn.Module], scale: float = 1.0, **settings: Any) -> None:
        super().__init__()
        self.cell = kind(8, 48, batch_first=True, **settings)
        self.head = nn.Linear(48, 10)
        for name, parameter in self.cell.named_parameters():
            if "weight_hh" in name:
                parameter.data.mul_(scale)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.cell(inputs.reshape(-1, 8, 8))[0]
        result: Tensor = self.head(states[:, -1])
        return result


class Sparse(nn.Module):
    """Words of a large vocabulary, of which a batch has a few: nearly all rows of the embedding's gradient are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 16)
        self.head = mlp(1, 64, inputs=64 * 16)

    def forward(self, inputs: Tensor) -> Tensor:
        words = (inputs * 6.02 + 4.88).round().long() + 17 * torch.arange(64)
        result: Tensor = self.head(self.words(words).flatten(1))
        return result


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), mlp(1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.rest(self.first(inputs).detach())
        return result


class Unused(nn.Module):
    """A head that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.auxiliary = mlp(2), nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.body(inputs)
        return result


def frozen_backbone() -> nn.Module:
    model = mlp(3)
    for parameter in list(model.parameters())[:4]:
        parameter.requires_grad_(False)
    return model


def trained(rate: float = 2e-3, steps: int = 300) -> nn.Module:
    model = mlp(2)
    train(model, digits(), Plan(steps=steps, optimizer=adam(rate), seed=9))
    for module in model:
        module._forward_hooks.clear()
    return model


# --- data -------------------------------------------------------------------------------------------------------------


def shuffled() -> Data:
    data = digits()
    data.targets = data.targets[torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(3))]
    return data


def few(count: int = 60, *, wrong: float = 0.0) -> Data:
    data = digits(count)
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(count, generator=generator) < wrong
    data.targets[some] = torch.randint(10, (int(some.sum()),), generator=generator)
    return data


def raw(scale: float = 16.0) -> Data:
    data = digits()
    inputs, held_out = ((each * 6.02 + 4.88) * scale for each in (data.inputs, data.held_out[0]))
    return Data(inputs, data.targets, (held_out, data.held_out[1]))


def with_nan(row: int = 700) -> Data:
    data = digits()
    data.inputs[row, 5] = math.nan
    return data


def unbalanced() -> Data:
    data = digits()
    rare = torch.nonzero(data.targets >= 5).flatten()
    kept = torch.cat([torch.nonzero(data.targets < 5).flatten(), rare[:20]])
    return Data(data.inputs[kept], data.targets[kept], data.held_out)


def noisy_regression() -> Data:
    data = diabetes()
    data.targets = data.targets + 1.5 * torch.randn(data.targets.shape, generator=torch.Generator().manual_seed(5))
    return data


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a Gaussian with one deviation: negative where it is narrow."""
    return 0.5 * (math.log(2 * math.pi * 0.01) + (outputs - 0.02 * targets).square() / 0.01).mean()


def adversaries(seed: int) -> Record:
    """Generator and discriminator in turn, their losses in one series."""
    torch.manual_seed(seed)
    generator, judge = mlp(1, 32, outputs=64, inputs=8), mlp(1, 32, outputs=1)
    model = nn.ModuleDict({"generator": generator, "judge": judge})
    data = digits()
    turn = {"step": 0}

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs

    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = model

        def forward(self, inputs: Tensor) -> Tensor:
            turn["step"] += 1
            made = generator(torch.randn(len(inputs), 8))
            ones, zeros = torch.ones(len(inputs), 1), torch.zeros(len(inputs), 1)
            score = functional.binary_cross_entropy_with_logits
            if turn["step"] % 2:
                return score(judge(inputs), ones) + score(judge(made.detach()), zeros)
            result: Tensor = score(judge(made), ones)
            return result

    return train(
        Turns(),
        data,
        Plan(
            seed=seed,
            loss=loss,
            loss_facts={
                "function": "binary_cross_entropy_with_logits",
                "constant": math.log(2),
                "target": None,
                "class_counts": (),
            },
            facts={"optimizers": 2},
        ),
    )


def spikes(at: int, factor: float) -> Callable[[int, nn.Module], None]:
    """Weights thrown far away at a step."""

    def each_step(step: int, model: nn.Module) -> None:
        if step == at:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(factor * torch.randn_like(parameter))

    return each_step


def bad_batch(at: int) -> Callable[[Tensor, Tensor], Tensor]:
    seen = {"steps": 0}

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen["steps"] += 1
        return functional.cross_entropy(outputs, (targets + 3) % 10 if seen["steps"] in range(at, at + 2) else targets)

    return loss


def nan_from(at: int) -> dict[str, Any]:
    """The slope of a root at zero, from that step on."""
    now = {"step": 0}

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        found = functional.cross_entropy(outputs, targets)
        return found + (outputs.sum() * 0).sqrt() if now["step"] >= at else found

    return {"loss": loss, "each_step": lambda step, model: now.update(step=step)}


def softmaxed(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.softmax(1), targets)


def half(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(2).to(torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.body(inputs.to(torch.bfloat16)).float()
        return result


def cosine(total: int, length: int | None = None, warmup: int = 0) -> Callable[[int], float]:
    def rate(step: int) -> float:
        if step <= warmup:
            return (step - 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * ((step - warmup) % (length or total)) / (length or total)))

    return rate


def only_last(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters[-2:], 2e-3)


SICK: dict[str, tuple[str | tuple[str, ...], Made]] = {
    "deep sigmoid": ("vanishing_gradient", of(lambda: mlp(10, activation=nn.Sigmoid))),
    "deep sigmoid sgd": ("vanishing_gradient", of(lambda: mlp(8, activation=nn.Sigmoid), optimizer=sgd(0.1))),
    "very deep sigmoid": ("vanishing_gradient", of(lambda: mlp(20, activation=nn.Sigmoid))),
    "deep relu, default init": ("vanishing_gradient", of(lambda: mlp(30), optimizer=sgd(0.05))),
    "rate 30 x too high, sgd": ("lr_too_high", of(lambda: mlp(2), optimizer=sgd(8.0))),
    "rate too high, adam": ("lr_too_high", of(lambda: mlp(3), optimizer=adam(0.5))),
    "rate too high, momentum": ("lr_too_high", of(lambda: mlp(2), optimizer=sgd(1.5, momentum=0.95))),
    "rate too high, regression": (
        ("lr_too_high", "exploding_gradient"),
        of(lambda: mlp(2, outputs=1, inputs=10), diabetes, loss=functional.mse_loss, optimizer=sgd(1.0)),
    ),
    "rate too low": ("lr_too_low", of(lambda: mlp(2), optimizer=adam(1e-7))),
    "rate too low, sgd": (("lr_too_low", "slow_convergence"), of(lambda: mlp(2), optimizer=sgd(3e-5))),
    "slow": (("lr_too_low", "slow_convergence"), of(lambda: mlp(2), optimizer=sgd(1.5e-3))),
    "rate zero": ("lr_zero", of(lambda: mlp(2), rate=lambda step: 0.0)),
    "schedule dies": ("lr_zero", of(lambda: mlp(2), rate=lambda step: 1.0 if step < 12 else 0.0)),
    "dead layer": ("dying_relu", of(dead)),
    "exploding recurrent": (
        ("exploding_gradient", "bad_init"),
        of(lambda: Recurrent(nn.RNN, 12.0, nonlinearity="relu"), optimizer=sgd(0.05)),
    ),
    "exploding deep": (
        ("exploding_gradient", "bad_init"),
        of(lambda: initialised(mlp(12), lambda w: nn.init.normal_(w, 0, 0.6), 0.0), optimizer=sgd(0.01)),
    ),
    "constant weights": ("bad_init", of(lambda: initialised(mlp(2), lambda w: nn.init.constant_(w, 0.02)))),
    "zero weights": ("bad_init", of(lambda: initialised(mlp(2), nn.init.zeros_, 0.0))),
    "tiny weights": (
        "bad_init",
        of(lambda: initialised(mlp(6), lambda w: nn.init.normal_(w, 0, 1e-3), 0.0), optimizer=sgd(0.05)),
    ),
    "saturated": (
        ("saturated_activation", "bad_init"),
        of(lambda: initialised(mlp(4, activation=nn.Tanh), lambda w: nn.init.normal_(w, 0, 3.0)), optimizer=sgd(1e-3)),
    ),
    "raw inputs": ("unnormalised_input", of(lambda: mlp(2), lambda: raw(100.0), optimizer=sgd(0.05))),
    "nan in data": ("nonfinite_data", of(lambda: mlp(2), with_nan)),
    "nan by the loss": ("nonfinite_gradient", of(lambda: mlp(2), **nan_from(100))),
    "softmax twice": (
        "output_activation",
        of(lambda: mlp(2), loss=softmaxed, loss_facts={"output_operation": "softmax"}),
    ),
    "wrong sign": ("wrong_loss", of(lambda: mlp(2), loss=lambda o, t: -functional.cross_entropy(o, t))),
    "labels shuffled": (("label_error",), of(lambda: mlp(2), shuffled, evaluate_every=30)),
    "labels shuffled, learnt by heart": (
        "label_error",
        of(lambda: mlp(2, 256), lambda: few(100, wrong=1.0), steps=400, evaluate_every=20, optimizer=adam(3e-3)),
    ),
    "overfitting": (
        "overfitting",
        of(lambda: mlp(3, 256), lambda: few(40), steps=600, evaluate_every=20, optimizer=adam(3e-3)),
    ),
    "imbalance": ("class_imbalance", of(lambda: mlp(2), unbalanced)),
    "left out of the optimizer": ("frozen_params", of(lambda: mlp(3), optimizer=only_last)),
    "detached": ("frozen_params", of(Detached)),
    "never cleared": ("grad_accumulation", of(lambda: mlp(2), clear=False, optimizer=sgd(0.05))),
    "decay too strong": ("over_regularised", of(lambda: mlp(3), optimizer=sgd(0.1, weight_decay=0.5))),
    "decay too strong, adam": ("over_regularised", of(lambda: mlp(3), optimizer=adam(3e-3, weight_decay=1.0))),
    "pure bf16": ("precision_underflow", of(Half, optimizer=sgd(2e-4))),
    "spike that stays": ("loss_spike", of(lambda: mlp(3), each_step=spikes(150, 0.5), optimizer=adam(1e-3))),
    "rate rises late": (
        "lr_too_high",
        of(lambda: mlp(3), rate=lambda step: 1.0 if step < 150 else 300.0, optimizer=adam(1e-3)),
    ),
}

HEALTHY: dict[str, Made] = {
    "plain": of(lambda: mlp(2), evaluate_every=20),
    "sgd": of(lambda: mlp(2), optimizer=sgd(0.1)),
    "momentum": of(lambda: mlp(2), optimizer=sgd(0.05, momentum=0.9)),
    "convolution": of(convolution),
    "convolution, sgd": of(convolution, optimizer=sgd(0.1)),
    "wide": of(lambda: mlp(2, 512)),
    "batch of two": of(lambda: mlp(2), batch=2, optimizer=adam(5e-4), steps=600),
    "batch of one, sgd": of(lambda: mlp(2), batch=1, optimizer=sgd(0.01), steps=600),
    "drop-out": of(lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.6), nn.Linear(128, 10))),
    "warm-up": of(lambda: mlp(2), rate=cosine(300, warmup=150), facts={"warmup_steps": 150}),
    "warm-up nobody told of": of(lambda: mlp(2), rate=cosine(300, warmup=150)),
    "warm restarts": of(lambda: mlp(2), rate=cosine(300, 75), optimizer=adam(5e-3)),
    "high but right rate": of(lambda: mlp(2), optimizer=adam(2e-2)),
    "high but right rate, sgd": of(lambda: mlp(2), optimizer=sgd(0.5)),
    "residual, zero branches": of(
        lambda: nn.Sequential(nn.Linear(64, 64), *(Residual() for _ in range(12)), nn.Linear(64, 10))
    ),
    "deep with norms": of(
        lambda: nn.Sequential(
            *(part for _ in range(10) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())), nn.Linear(64, 10)
        )
    ),
    "deep sigmoid with norms": of(
        lambda: nn.Sequential(
            *(part for _ in range(6) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Sigmoid())),
            nn.Linear(64, 10),
        ),
        optimizer=adam(3e-3),
    ),
    "shallow sigmoid": of(lambda: mlp(2, activation=nn.Sigmoid), optimizer=adam(3e-3)),
    "shallow sigmoid, sgd": of(lambda: mlp(1, activation=nn.Sigmoid), optimizer=sgd(0.5)),
    "zero head": of(lambda: nn.Sequential(*list(mlp(2))[:-1], initialised(nn.Linear(64, 10), nn.init.zeros_, 0.0))),
    "he": of(lambda: he(mlp(6))),
    "frozen backbone": of(frozen_backbone, optimizer=adam(3e-3)),
    "unused head": of(Unused),
    "embedding": of(Sparse, optimizer=adam(3e-3)),
    "lstm": of(lambda: Recurrent(nn.LSTM), optimizer=adam(5e-3)),
    "gru, clipped": of(lambda: Recurrent(nn.GRU), optimizer=adam(1e-2), clip=0.5),
    "rnn, clipped": of(lambda: Recurrent(nn.RNN), optimizer=adam(3e-3), clip=0.5),
    "fine-tuning": of(trained, optimizer=adam(1e-5), facts={"begins_trained": True}, evaluate_every=20),
    "fine-tuning nobody told of": of(trained, optimizer=adam(1e-5)),
    "near convergence": of(lambda: trained(steps=500), optimizer=adam(1e-3), evaluate_every=20),
    "to the end": of(lambda: mlp(2), steps=1500, optimizer=adam(2e-3), evaluate_every=50),
    "regression": of(lambda: mlp(2, outputs=1, inputs=10), diabetes, loss=functional.mse_loss),
    "regression in noise": of(
        lambda: mlp(1, 16, outputs=1, inputs=10), noisy_regression, loss=functional.mse_loss, evaluate_every=20
    ),
    "summed loss": of(
        lambda: mlp(2), loss=partial(functional.cross_entropy, reduction="sum"), loss_facts={"constant": 2.3 * 32}
    ),
    "large targets": of(
        lambda: mlp(2, outputs=1, inputs=10),
        lambda: (lambda d: Data(d.inputs, 77 * d.targets + 150, d.held_out))(diabetes()),
        loss=functional.mse_loss,
        optimizer=adam(1e-2),
        loss_facts={"constant": 5900.0},
    ),
    "likelihood below zero": of(
        lambda: mlp(1, outputs=1, inputs=10),
        diabetes,
        loss=nll,
        loss_facts={"function": None, "bound": None, "constant": None},
    ),
    "raw inputs with adam": of(lambda: mlp(2), lambda: raw(1.0)),
    "raw inputs behind a norm": of(
        lambda: nn.Sequential(nn.BatchNorm1d(64), *mlp(2)),
        lambda: raw(16.0),
        optimizer=sgd(0.1),
        facts={"normalized_input": True},
    ),
    "bad batch that passes": of(lambda: mlp(2), loss=bad_batch(150)),
    "little wrong labels": of(lambda: mlp(2), lambda: few(1200, wrong=0.2), evaluate_every=30),
    "decay": of(lambda: mlp(2), optimizer=lambda parameters: torch.optim.AdamW(parameters, 1e-3, weight_decay=0.1)),
    "label smoothing": of(lambda: mlp(2), loss=partial(functional.cross_entropy, label_smoothing=0.2)),
    "adversaries": adversaries,
    "bf16 over fp32 weights": of(lambda: mlp(2), facts={"precision": "bf16"}),
    "cosine to zero": of(lambda: mlp(2), rate=cosine(300), optimizer=adam(2e-3)),
}


def all_cases() -> Iterable[tuple[str, tuple[str, ...], Made]]:
    for name, (codes, made) in SICK.items():
        yield name, (codes,) if isinstance(codes, str) else codes, made
    for name, made in HEALTHY.items():
        yield name, (), made
