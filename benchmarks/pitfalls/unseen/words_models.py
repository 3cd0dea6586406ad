"""Language models, others and what was trained beforehand, of ``unseen_words``. B samples, T positions, V kinds of tokens, W width, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split
from benchmarks.pitfalls.faults import cross_entropy
from benchmarks.pitfalls.models import Recurrent, mlp
from benchmarks.pitfalls.unseen.words import (
    LENGTH,
    LETTERS,
    LONGEST,
    SAID,
    SPOKEN,
    WORDS,
    following,
)

# --- language models ---------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """``still``: questions and keys begin at zero."""

    def __init__(self, width: int, heads: int, causal: bool, still: bool = False) -> None:
        super().__init__()
        self.question, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal
        if still:
            nn.init.zeros_(self.question.weight)
            nn.init.zeros_(self.key.weight)

    def forward(self, x: Tensor) -> Tensor:
        def split(each: Tensor) -> Tensor:  # (B, T, W) -> (B, H, T, W / H)
            return each.reshape(*each.shape[:2], self.heads, -1).transpose(1, 2)

        question, key, value = split(self.question(x)), split(self.key(x)), split(self.value(x))
        mixed = functional.scaled_dot_product_attention(question, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, causal: bool, post: bool, still: bool, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention = Attention(width, 4, causal, still)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norms
        if self.post:
            x = first(x + self.attention(x))
            return second(x + self.transformed(x))  # type: ignore[no-any-return]
        x = x + self.attention(first(x))
        return x + self.transformed(second(x))

    def transformed(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))  # type: ignore[no-any-return]


class Writer(nn.Module):
    """A transformer over (B, T) ids with an answer at every position; (B, T, V).

    ``post``: norms after each sum and none at the end. ``cap``: logits are held between -cap and cap. ``scaled``: embeddings times the root of W.
    """

    def __init__(
        self,
        kinds: int = LETTERS,
        width: int = 32,
        layers: int = 2,
        *,
        outputs: int | None = None,
        causal: bool = True,
        post: bool = False,
        still: bool = False,
        tied: bool = False,
        std: float = 0.2,
        scaled: bool = False,
        placed: bool = True,
        cap: float | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(kinds, width)
        self.places = nn.Embedding(LENGTH, width) if placed else None
        for embedding in (self.tokens, self.places):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=std)
        self.blocks = nn.ModuleList(Block(width, causal, post, still, activation) for _ in range(layers))
        self.norm = nn.Identity() if post else nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs or kinds, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.scale, self.cap = width**0.5 if scaled else 1.0, cap

    def states(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) * self.scale
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.states(ids))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Grams(nn.Sequential):
    """(B, n) ids -> (B, V): the embeddings of n letters side by side into an MLP (Bengio et al. 2003)."""

    def __init__(
        self,
        context: int = 8,
        width: int = 12,
        hidden: int = 96,
        activation: Callable[[], nn.Module] = nn.Tanh,
        layers: int = 1,
        std: float | None = None,
    ) -> None:
        parts: list[nn.Module] = [nn.Embedding(LETTERS, width), nn.Flatten()]
        for index in range(layers):
            parts += [nn.Linear(hidden if index else context * width, hidden), activation()]
        super().__init__(*parts, nn.Linear(hidden, LETTERS))
        if std is not None:
            for module in self:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=std)


class GatedConvolutions(nn.Module):
    """(B, T) ids -> (B, T, V): causal convolutions, each tanh times sigmoid (van den Oord et al. 2016); ``around``: with a way around each."""

    def __init__(self, layers: int, width: int = 32, around: bool = True, reach: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, reach) for _ in range(layers))
        self.head = nn.Linear(width, LETTERS)
        self.around, self.reach = around, reach

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids).transpose(1, 2)
        for layer in self.layers:
            value, gate = layer(functional.pad(x, (self.reach - 1, 0))).chunk(2, 1)
            found = torch.tanh(value) * torch.sigmoid(gate)
            x = x + found if self.around else found
        return self.head(x.transpose(1, 2))  # type: ignore[no-any-return]


class MinimalGated(nn.Module):
    """h = (1 - z) h + z c, where neither z nor c looks at h (Feng et al. 2024); ``bias`` of what opens z. (B, T) -> (B, T, V)."""

    def __init__(self, kinds: int = LETTERS, width: int = 48, bias: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(kinds, width)
        self.gate, self.content = nn.Linear(width, width), nn.Linear(width, width)
        self.opened = nn.Sigmoid()
        self.head = nn.Linear(2 * width, kinds)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        z, c = self.opened(self.gate(x)), self.content(x)
        state, states = torch.zeros_like(c[:, 0]), []
        for position in range(ids.shape[1]):
            state = state + z[:, position] * (c[:, position] - state)
            states.append(state)
        held = torch.stack(states, 1)
        return self.head(torch.cat([held, torch.tanh(held)], -1))  # type: ignore[no-any-return]


class Decaying(nn.Module):
    """h = a h + b x with a learnt factor a unit, ``bounded`` below 1 by a sigmoid or free; two such layers. (B, T) -> (B, T, V)."""

    def __init__(self, width: int = 40, bounded: bool = True, first: float = 0.9) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, width)
        begin = torch.linspace(first - 0.4, first, width)
        self.factors = nn.ParameterList(
            nn.Parameter(torch.logit(begin) if bounded else begin.clone()) for _ in range(2)
        )
        self.into = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.between = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, LETTERS)
        self.bounded = bounded

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for factor, into, between in zip(self.factors, self.into, self.between, strict=True):
            kept = torch.sigmoid(factor) if self.bounded else factor
            given, state, states = into(x), torch.zeros_like(x[:, 0]), []
            for position in range(ids.shape[1]):
                state = kept * state + given[:, position]
                states.append(state)
            x = x + between(functional.gelu(torch.stack(states, 1)))
        return self.head(x)  # type: ignore[no-any-return]


# --- other models ------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """(B, T) ids -> (B, T, 2): a GRU in both directions."""

    def __init__(self, width: int = 24, classes: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, width)
        self.recurrent = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.tokens(ids))[0])  # type: ignore[no-any-return]


class Translator(nn.Module):
    """Words of a number (B, 10), then the digits so far (B, 4): (B, 14) ids -> (B, 4, 10). ``unlearnt``: the encoder is run without gradients."""

    def __init__(self, width: int = 48, unlearnt: bool = False) -> None:
        super().__init__()
        self.words, self.digits = nn.Embedding(len(SPOKEN), width), nn.Embedding(11, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.question = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, 10)
        self.unlearnt = unlearnt

    def forward(self, ids: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.unlearnt):
            read, last = self.encoder(self.words(ids[:, :SAID]))
        states, _ = self.decoder(self.digits(ids[:, SAID:]), last)
        weights = (self.question(states) @ read.transpose(1, 2)).softmax(-1)  # (B, 4, 10)
        return self.head(torch.cat([states, weights @ read], -1))  # type: ignore[no-any-return]


class Towers(nn.Module):
    """Two encoders, one for each of a pair of words (B, 2, 8) -> (B, 2, W) of length 1. ``scale``: log of what cosines are multiplied by."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()

        def tower() -> nn.Module:
            return nn.Sequential(
                nn.Embedding(LETTERS, 16), nn.Flatten(), nn.Linear(16 * LONGEST, 128), nn.ReLU(), nn.Linear(128, width)
            )

        self.typed, self.meant = tower(), tower()
        self.scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, pairs: Tensor) -> Tensor:
        found = torch.stack([self.typed(pairs[:, 0]), self.meant(pairs[:, 1])], 1)
        return functional.normalize(found, dim=-1) * torch.exp(self.scale / 2)


class Variational(nn.Module):
    """Words (B, 8) through a code of chance and back: (B, 8, V)."""

    def __init__(self, code: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Embedding(LETTERS, 16), nn.Flatten(), nn.Linear(16 * LONGEST, 128), nn.ReLU(), nn.Linear(128, 2 * code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 128), nn.ReLU(), nn.Linear(128, LONGEST * LETTERS), nn.Unflatten(1, (LONGEST, LETTERS))
        )

    def both(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, and how far each word's code is from the normal distribution: (B,) in nats."""
        mean, log_variance = self.encoder(words).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return self.decoder(code), divergence

    def forward(self, words: Tensor) -> Tensor:
        return self.both(words)[0]


def bag(dropout: float = 0.0, sparse: bool = False, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(WORDS, width, mode="mean", sparse=sparse), *mlp(width, 6, 48, 1, dropout=dropout)
    )


def last_state(padding: int) -> nn.Module:
    """A plain RNN's last state says the class, after so many positions of a filler."""

    class Padded(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(functional.pad(x, (0, padding), value=WORDS))

    model = Padded(nn.RNN, 48, 6, 48, embedded=WORDS + 1)
    assert model.embedding is not None
    model.embedding.padding_idx = WORDS
    return model


def squared() -> nn.Module:
    """What stands for ReLU in Primer (So et al. 2021)."""

    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).square()

    return Squared()


def biased(bias: float) -> nn.Module:
    """One layer of many units that is to be sparse, whose biases begin so."""
    model = mlp(32, 32, 192, 1)
    nn.init.constant_(model[0].bias, bias)  # type: ignore[arg-type]
    return model


def head_only() -> Writer:
    model = reader().requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def read_again(weight: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Cross-entropy a letter, and the code's divergence."""

    def objective(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
        assert isinstance(model, Variational)
        output, divergence = model.both(words)
        return cross_entropy(output, targets) + weight * divergence.mean()

    return objective


# --- what was trained beforehand ---------------------------------------------------------------------------------------


@cache
def learnt() -> Mapping[str, Tensor]:
    """State of a ``Writer`` that has read the manual, always the same one."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(7)
        model, pair = Writer(), following()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(300):
            rows = torch.randint(len(pair.train), (32,))
            optimizer.zero_grad()
            cross_entropy(model(pair.train.inputs[rows]), pair.train.targets[rows]).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def reader() -> Writer:
    """A model that has learnt, to be trained further."""
    model = Writer()
    model.load_state_dict(learnt())
    return model


class LowRank(nn.Module):
    """A layer that stays as it is, and a product of two narrow ones beside it (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, still: bool) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=False),
        )
        nn.init.zeros_(self.up.weight)
        if still:
            nn.init.zeros_(self.down.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * self.up(self.down(x))  # type: ignore[no-any-return]


def adapted(rank: int = 8, alpha: float = 16.0, still: bool = False) -> Writer:
    """A model that has learnt, frozen, with a ``LowRank`` at questions, values and MLPs. ``still``: both of its parts begin at zero."""
    model = reader().requires_grad_(False)
    for block in model.blocks:
        for owner, name in ((block.attention, "question"), (block.attention, "value"), (block, "up"), (block, "down")):
            setattr(owner, name, LowRank(getattr(owner, name), rank, alpha, still))
    return model


@cache
def taught() -> Pair:
    """Windows and what the model that has learnt says of what follows them: (N, 8) ids -> (N, V) logits."""
    teacher = reader().eval()

    def part(split: Split) -> Split:
        with torch.no_grad():
            return Split(split.inputs[:, -8:], teacher(split.inputs)[:, -1])

    pair = following(count=60_000)
    return Pair(part(pair.train), part(pair.validation))


@cache
def understood() -> Pair:
    """The state of the model that has learnt at the end of a window, of mean 0 and deviation 1: (N, W) -> the same."""
    teacher = reader().eval()
    pair = following()
    with torch.no_grad():
        train, validation = (teacher.states(part.inputs)[:, -1] for part in (pair.train, pair.validation))
    mean, deviation = train.mean(0), train.std(0)
    train, validation = (train - mean) / deviation, (validation - mean) / deviation
    return Pair(Split(train, train), Split(validation, validation))
