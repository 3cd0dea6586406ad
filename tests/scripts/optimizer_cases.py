"""Small training loops of all shapes. Each writes down, by plain autograd, what it saw: one JSON object on stdout."""

import hashlib
import json
import sys

import torch
from torch import nn

torch.manual_seed(0)
STEPS, RATE = 12, 0.05
data, target = torch.randn(64, 8), torch.randn(64, 1)
losses, norms = [], []


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


def run(case):
    torch.manual_seed(0)
    losses.clear()
    norms.clear()
    model = Words() if case == "sparse" else network()
    layers = list(layer_norms(model))
    if case in ("plain", "accumulated", "scaled", "closure", "sparse"):
        globals()[case](model, torch.optim.SGD(model.parameters(), lr=RATE))
    elif case in ("unowned", "adversarial"):
        layers = globals()[case]()
    else:
        layers = globals()[case](model) or layers
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    said = {"losses": losses[:], "norms": norms[:], "layers": layers, "weights_sha256": digest}
    return said | {"next_random": torch.rand(1).item()}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
