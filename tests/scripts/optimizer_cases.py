"""Small training loops of all shapes. Each writes down, by plain autograd, what it saw: one JSON object on stdout."""

import contextlib
import copy
import gc
import hashlib
import io
import itertools
import json
import math
import sys
import weakref
from typing import Any

import torch
from torch import nn

torch.manual_seed(0)
STEPS, RATE = 12, 0.05
data, target = torch.randn(64, 8), torch.randn(64, 1)
losses, norms = [], []
weights = []  # before each step: layer -> its parameters


def network():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def layer_norms(model):
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            square = 0.0 if parameter.grad is None else parameter.grad.to_dense().double().square().sum().item()
            layer = name.rpartition(".")[0]
            found[layer] = found.get(layer, 0.0) + square
    return {layer: square**0.5 for layer, square in found.items()}


def note(loss, *models):
    losses.append(loss.item() if hasattr(loss, "item") else loss)
    norms.append([norm for model in models for norm in layer_norms(model).values()])
    weights.append(layer_weights(models[0]))


def layer_weights(model):
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(name.rpartition(".")[0], []).append(parameter.detach().double().flatten().clone())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def moved():
    """By step and layer: norm of the weights before it, and of its update over that."""
    sizes, ratios = [], []
    for before, after in itertools.pairwise(weights):
        sizes.append([part.norm().item() for part in before.values()])
        ratios.append([((after[layer] - part).norm() / part.norm()).item() for layer, part in before.items()])
    return sizes, ratios


def loss_of(model, rows=slice(None)):
    return nn.functional.mse_loss(model(data[rows]), target[rows])


def plain(model, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, torch.randperm(64)[:16])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        note(loss, model)
        optimizer.step()


def accumulated(model, optimizer):
    for _ in range(STEPS):
        total = 0.0
        for part in range(4):
            loss = loss_of(model, slice(16 * part, 16 * part + 16)) / 4
            loss.backward()
            total += loss.item()
        note(total, model)
        optimizer.step()
        optimizer.zero_grad()


def scaled(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        note(loss, model)
        scaler.step(optimizer)
        scaler.update()


def closure(model, optimizer):
    for _ in range(STEPS):

        def step():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            note(loss, model)
            return loss

        optimizer.step(step)


def busy():
    """Draws random numbers, has buffers, evaluates between its steps, and shares memory with nobody."""
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, torch.randperm(64)[:16]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            losses.append(loss_of(model).item())
        model.train()
    return model


def uncleared(model, optimizer):
    for _ in range(STEPS):
        loss = loss_of(model)
        loss.backward()
        note(loss, model)
        optimizer.step()


def compiled(model, optimizer):
    fast = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(fast(data), target)
        loss.backward()
        note(loss, model)
        optimizer.step()
    torch.compile(plain_step, backend="eager")(model, optimizer)


def searched(model):
    """Several passes a step, all of the same batch."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=RATE, max_iter=4)

    def tried():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(STEPS):
        losses.append(optimizer.step(tried).item())


class Shy(nn.Module):
    """Does not like to be asked."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)

    @property
    def config(self):
        raise RuntimeError("not now")

    def forward(self, rows):
        return self.body(rows)


class ReLU(nn.Module):
    """Has the name of another one, and gives what has no largest element."""

    def forward(self, rows):
        return torch.complex(rows, rows)


class Real(nn.Module):
    def forward(self, rows):
        return rows.abs()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(100, 4, sparse=True)
        self.head = nn.Linear(4, 1)

    def forward(self, rows):
        return self.head(self.words(rows))


def sparse(model, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(torch.randint(0, 100, (64,))), target)
        loss.backward()
        note(loss, model)
        optimizer.step()


def unowned():
    """Parameters that belong to no module."""
    weight = torch.zeros(8, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(data @ weight + bias, target)
        loss.backward()
        losses.append(loss.item())
        norms.append([weight.grad.norm().item(), bias.grad.norm().item()])
        optimizer.step()
    return ["group0.param0", "group0.param1"]


def frozen(model):
    """The optimizer has all parameters; some never get a gradient."""
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    plain(model, optimizer)
    for row in norms:
        row.insert(0, 0.0)
    return ["0", "2"]


class Half(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(self, rows):
        return self.head(self.body(rows).tanh())


class Maker(Half): ...


class Critic(Half): ...


def adversarial():
    """The maker steps first, then the critic."""
    maker, critic = Maker(8), Critic(1)
    first, second = torch.optim.Adam(maker.parameters(), lr=RATE), torch.optim.Adam(critic.parameters(), lr=RATE)
    for _ in range(STEPS):
        first.zero_grad()
        made = -critic(maker(data)).mean()
        made.backward()
        first.step()
        own = layer_norms(maker)
        second.zero_grad()
        judged = critic(maker(data).detach()).mean() - critic(data).mean()
        judged.backward()
        losses.append((made + judged).item())
        norms.append([*own.values(), *layer_norms(critic).values()])
        second.step()


def split(model):
    """Weights by one optimizer, biases by another, as with Muon and AdamW."""
    weights = torch.optim.AdamW([p for p in model.parameters() if p.dim() > 1], lr=RATE)
    biases = torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], lr=RATE)
    for _ in range(STEPS):
        loss = loss_of(model)
        loss.backward()
        for optimizer in (weights, biases):
            optimizer.step()
            optimizer.zero_grad()


def resumed(model):
    first = torch.optim.AdamW(model.parameters(), lr=RATE)
    loss_of(model).backward()
    state = {index: {"step": torch.tensor(100.0), **{k: torch.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")}}
             for index, p in enumerate(model.parameters())}  # fmt: skip
    first.load_state_dict({**first.state_dict(), "state": state})
    plain(model, first)


def many(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loss_of(model).backward()
    for _ in range(3000):
        optimizer.step()


def copied(model, optimizer):
    """Keeps the model whole after every step, and a copy of it."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        note(loss, model)
        optimizer.step()
        torch.save(model, io.BytesIO())
        twin = copy.deepcopy(model)
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in twin.modules())


def given_once(model, optimizer):
    """A generator is as good as a list for ``torch.autograd.backward``."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        parts = [loss_of(model, slice(0, 32)), loss_of(model, slice(32, 64))]
        torch.autograd.backward(part for part in parts)
        assert model[0].weight.grad is not None
        note(sum(parts), model)
        optimizer.step()


def averaged(model, optimizer):
    """The loss is changed in place before the step, as an all-reduce does."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        note(loss, model)
        loss.detach().mul_(100.0)
        optimizer.step()


def broken_off(model, optimizer):
    """A backward pass fails, and the step is made with another one."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        failing = loss_of(model)
        failing.register_hook(lambda gradient: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            failing.backward()
        loss = loss_of(model)
        loss.backward()
        note(loss, model)
        optimizer.step()


def skipped(model, optimizer):
    """A loss scaler skips each third step, the first one among them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3 * STEPS // 2):
        optimizer.zero_grad()
        loss = loss_of(model) * (math.inf if step % 3 == 0 else 1.0)
        (scaled,) = scaler.scale([loss])
        scaled.backward()
        if step % 3:
            note(loss, model)
            norms[-1] = [norm / scaler.get_scale() for norm in norms[-1]]
        scaler.step(optimizer)
        scaler.update()


class Outer(torch.optim.Optimizer):
    """Leaves the step to another optimizer, as sharpness-aware and sharded ones do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": RATE})
        self.inner = torch.optim.SGD(self.param_groups, lr=RATE)

    def step(self, closure=None):
        self.inner.step()


def unfrozen(model):
    """The first layer is added later on."""
    optimizer = torch.optim.SGD(model[2].parameters(), lr=RATE)
    for step in range(STEPS):
        if step == STEPS // 2:
            optimizer.add_param_group({"params": list(model[0].parameters())})
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        note(loss, model)
        if step < STEPS // 2:
            norms[-1] = norms[-1][1:]
        optimizer.step()


def folds(model):
    """One training after another; what one has trained is gone when the next begins."""
    for _ in range(3):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        plain(model, optimizer)
        weight = weakref.ref(model[0].weight)
        del model, optimizer
        gc.collect()
        assert weight() is None


def renewed(model):
    for _ in range(200):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        plain_step(model, optimizer)


def plain_step(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


MODELS = {
    "sparse": Words,
    "shy": lambda: nn.Sequential(Shy(), nn.Tanh(), nn.Linear(8, 1)),
    "odd": lambda: nn.Sequential(nn.Linear(8, 8), ReLU(), Real(), nn.Linear(8, 1)),
}


ONE_OPTIMIZER = frozenset(
    {"plain", "accumulated", "scaled", "closure", "sparse", "uncleared", "compiled", "copied", "given_once", "averaged", "broken_off", "skipped"}
)  # fmt: skip


def run(case: str) -> dict[str, Any]:
    torch.manual_seed(0)
    for kept in (losses, norms, weights):
        kept.clear()
    model = MODELS.get(case, network)()
    layers = list(layer_norms(model))
    if case in ONE_OPTIMIZER:
        globals()[case](model, torch.optim.SGD(model.parameters(), lr=RATE))
        weights.append(layer_weights(model))
    elif case == "nested":
        plain(model, Outer(model.parameters()))
    elif case == "fused":
        skipped(model, torch.optim.SGD(model.parameters(), lr=RATE, fused=True))
    elif case in ("shy", "odd", "loaded"):
        if case == "loaded":
            model.load_state_dict(network().state_dict())
        plain(model, torch.optim.SGD(model.parameters(), lr=RATE))
    elif case == "busy":
        model = busy()
    elif case in ("unowned", "adversarial"):
        layers = globals()[case]()
    else:
        layers = globals()[case](model) or layers
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    said = {"losses": losses[:], "norms": norms[:], "layers": layers, "weights_sha256": digest}
    said["weight_norms"], said["update_ratios"] = moved()
    return said | {"next_random": torch.rand(1).item()}


if __name__ == "__main__":
    said = run(sys.argv[1])
    try:
        import workers  # a package of the script's own, if there is one

        said["workers"] = "mine" if hasattr(workers, "mine") else "another's"
    except ImportError:
        said["workers"] = None
    print(json.dumps(said))
