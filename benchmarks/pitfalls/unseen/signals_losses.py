"""Losses and measures of ``unseen_signals``. B samples, D values of one, K components or quantities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.case import Objective
from benchmarks.pitfalls.data import Split
from benchmarks.pitfalls.loop import standard

Loss = Callable[[Tensor, Tensor], Tensor]
Measure = Callable[[nn.Module, Split], Mapping[str, float]]

# --- losses of an output -----------------------------------------------------------------------------------------------


def mixture(stable: bool) -> Loss:
    """Negative log likelihood of K normals (B, 3 K) for (B, 1); exponentials that are all 0 are no trouble to log-sum-exp."""

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        weights, means, log_widths = output.chunk(3, 1)
        logs = weights.log_softmax(1) - log_widths - 0.5 * ((targets - means) / log_widths.exp()).square()
        return -(logs.logsumexp(1) if stable else logs.exp().sum(1).log()).mean()

    return loss


def pinball(output: Tensor, targets: Tensor) -> Tensor:
    """Quantiles 0.1, 0.5 and 0.9, (B, 3), of (B, 1)."""
    above = targets - output
    return torch.maximum(torch.tensor([0.1, 0.5, 0.9]) * above, torch.tensor([-0.9, -0.5, -0.1]) * above).mean()


def cox(output: Tensor, targets: Tensor) -> Tensor:
    """Partial likelihood of who has the event first: risks (B, 1), times and events (B, 2)."""
    order = targets[:, 0].argsort(descending=True)
    risk, seen = output[order, 0], targets[order, 1]
    return -((risk - risk.logcumsumexp(0)) * seen).sum() / seen.sum().clamp(min=1)


def weibull(output: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of a log scale and a log shape (B, 2) for times and events (B, 2)."""
    log_time, seen = targets[:, 0].log(), targets[:, 1]
    shape = output[:, 1].exp()
    cumulated = (shape * (log_time - output[:, 0])).exp()
    return (cumulated - seen * (output[:, 1] + (shape - 1) * log_time - shape * output[:, 0])).mean()


def overlap(output: Tensor, targets: Tensor) -> Tensor:
    """Dice's coefficient of logits with (B, D) of 0 and 1: 1 is best. As a loss it has the wrong sign."""
    found = output.sigmoid()
    return (2 * (found * targets).sum(1) + 1).div((found + targets).sum(1) + 1).mean()


def dice(output: Tensor, targets: Tensor) -> Tensor:
    return 1 - overlap(output, targets)


def times_mask(output: Tensor, targets: Tensor) -> Tensor:
    """Squared error where there is a target; what is not a number stays that when it is multiplied by 0."""
    there = (~targets.isnan()).float()
    return ((output - targets).square() * there).sum() / there.sum()


def in_square_kilometres(output: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of metres."""
    return functional.mse_loss(output, targets) * 1e-6


def weighted(factor: float) -> Loss:
    """Binary cross-entropy in which what is there weighs more than what is not."""
    return lambda output, targets: functional.binary_cross_entropy_with_logits(
        output, targets, pos_weight=torch.tensor(factor)
    )


def focal(output: Tensor, targets: Tensor) -> Tensor:
    """What is found with ease counts little (Lin et al. 2017)."""
    each = functional.binary_cross_entropy_with_logits(output, targets, reduction="none")
    return ((1 - (-each).exp()).square() * each).mean()


# --- losses of a model -------------------------------------------------------------------------------------------------


def elbo(beta: float = 1.0, sign: float = 1.0, rise: int = 0) -> Objective:
    """Squared error of a picture plus ``beta`` times the divergence from the prior, which grows over ``rise`` steps."""

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        found, mean, log_variance = model.sampled(x)  # type: ignore[operator]
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        factor = min(1.0, float(model.passes) / rise) if rise else 1.0  # type: ignore[arg-type]
        return (found - targets).square().sum(1).mean() + sign * beta * factor * divergence  # type: ignore[no-any-return]

    return objective


def quantised(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Squared error, codes drawn to what is encoded, and a little the other way round."""
    encoded, codes = model.found(x)  # type: ignore[operator]
    drawn = (codes - encoded.detach()).square().mean()
    if model.through:
        drawn = drawn + 0.25 * (codes.detach() - encoded).square().mean()
    return (model(x) - targets).square().mean() + drawn  # type: ignore[no-any-return]


def sparse(price: float) -> Objective:
    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        codes = model.codes(x)  # type: ignore[operator]
        return (model.decoder(codes) - targets).square().mean() + price * codes.abs().mean()  # type: ignore[operator,no-any-return]

    return objective


def noised(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """How much of the noise in a picture is not found, at an angle drawn for each."""
    angle = torch.rand(len(x), 1) * math.pi / 2
    noise = torch.randn_like(x)
    return (model(angle.cos() * x + angle.sin() * noise, angle) - noise).square().mean()  # type: ignore[no-any-return]


def shifted(x: Tensor) -> Tensor:
    """Pictures (B, 64) moved by up to a pixel to a side, with noise."""
    move = int(torch.randint(-1, 2, ()))
    return x.reshape(-1, 8, 8).roll(move, 2).flatten(1) + 0.3 * torch.randn_like(x)


def contrasted(mixed: bool = False) -> Objective:
    """InfoNCE of two views of every picture; ``mixed``: the second view's pictures are in another order."""

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        other = x[torch.randperm(len(x))] if mixed else x
        likeness = model(shifted(x)) @ model(shifted(other)).T / 0.2
        return functional.cross_entropy(likeness, torch.arange(len(x)))

    return objective


def triplets(reach: float | None = None) -> Objective:
    """Of every picture: the farthest of its class in the batch against the nearest of another (Hermans et al. 2017).

    With ``reach`` by angle: the cosine, which is 1 between a picture and itself, is kept between minus that and that."""

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        places = model(x)
        far = _distances(places) if reach is None else (places @ places.T).clamp(-reach, reach).acos()
        same = targets[:, None] == targets
        hardest = torch.where(same, far, -1.0).amax(1), torch.where(same, 1e9, far).amin(1)
        return (hardest[0] - hardest[1] + 0.5).clamp(min=0).mean()

    return objective


def _distances(places: Tensor) -> Tensor:
    return (places[:, None] - places).square().sum(2).add(1e-12).sqrt()


def gambled(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """REINFORCE: a class is drawn, 1 is won if it is right; only what was drawn is learnt from."""
    policy = torch.distributions.Categorical(logits=model(x))
    drawn = policy.sample()
    won = (drawn == targets).float()
    return -((won - won.mean()) * policy.log_prob(drawn)).mean()  # type: ignore[no-any-return]


def taught(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the pupil, and how far it is, on another view, from the teacher, which follows it."""
    if model.training:
        model.follow()  # type: ignore[operator]
    answer, guess = model(shifted(x)).softmax(1), model.pupil(shifted(x)).softmax(1)  # type: ignore[operator]
    return functional.cross_entropy(model.pupil(x), targets) + (guess - answer).square().sum(1).mean()  # type: ignore[operator,no-any-return]


def penalised(price: float) -> Objective:
    """Squared error plus the sum of all squared weights."""

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()])
        return functional.mse_loss(model(x), targets) + price * squares.sum()

    return objective


def two_tasks(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies of two class numbers (B, 2)."""
    first, second = model.both(x)  # type: ignore[operator]
    return functional.cross_entropy(first, targets[:, 0]) + functional.cross_entropy(second, targets[:, 1])


# --- measures ----------------------------------------------------------------------------------------------------------


def with_loss(objective: Objective, measure: Measure = standard) -> Measure:
    """The validation loss besides; the draws it makes do not change the run's."""

    def found(model: nn.Module, split: Split) -> Mapping[str, float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = float(objective(model, split.inputs, split.targets))
        return {**measure(model, split), "loss": loss}

    return found


def nearest(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Share of pictures whose nearest other one is of the same class."""
    places = model(split.inputs)
    far = torch.cdist(places, places)
    if far.isnan().any():
        return {"accuracy": math.nan}
    far.fill_diagonal_(math.inf)
    return {"accuracy": float((split.targets[far.argmin(1)] == split.targets).float().mean())}


def found_again(model: nn.Module, split: Split) -> Mapping[str, float]:
    """Share of pictures whose other view is nearer than that of any other picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        likeness = model(shifted(split.inputs)) @ model(shifted(split.inputs)).T
    if likeness.isnan().any():
        return {"accuracy": math.nan}
    return {"accuracy": float((likeness.argmax(1) == torch.arange(len(likeness))).float().mean())}


def noise_found(model: nn.Module, split: Split) -> Mapping[str, float]:
    """``r2`` of the noise in pictures that are half noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.randn_like(split.inputs)
    angle = torch.full((len(noise), 1), math.pi / 4)
    rest = (model(angle.cos() * split.inputs + angle.sin() * noise, angle) - noise).square().mean()
    return {"r2": float(1 - rest)}


def balanced(model: nn.Module, split: Split) -> Mapping[str, float]:
    """``accuracy``: the mean of the shares found of what is there and of what is not, logits above 0 against 0 and 1."""
    found, there = model(split.inputs) > 0, split.targets > 0.5
    return {"accuracy": float((found[there].float().mean() + (~found)[~there].float().mean()) / 2)}


def concordance(sign: float = 1.0) -> Measure:
    """``concordance``: of pairs whose first event is known, the share that has the higher risk; the first output is the risk, or minus it."""

    def found(model: nn.Module, split: Split) -> Mapping[str, float]:
        risk, time, seen = sign * model(split.inputs)[:, 0], split.targets[:, 0], split.targets[:, 1] > 0
        known = seen[:, None] & (time[:, None] < time)
        higher = (risk[:, None] > risk).float() + 0.5 * (risk[:, None] == risk).float()
        return {"concordance": float(higher[known].mean()) if not risk.isnan().any() else math.nan}

    return found


def of_mean(mean: Callable[[Tensor], Tensor]) -> Measure:
    """``r2`` of what ``mean`` makes of the output: (B, 1)."""

    class Mean(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return mean(self.model(x))

    return lambda model, split: standard(Mean(model), split)


def mixture_mean(output: Tensor) -> Tensor:
    weights, means, _ = output.chunk(3, 1)
    return (weights.softmax(1) * means).sum(1, keepdim=True)


def first_task(model: nn.Module, split: Split) -> Mapping[str, float]:
    return {"accuracy": float((model(split.inputs).argmax(1) == split.targets[:, 0]).float().mean())}


def first(output: Tensor) -> Tensor:
    return output[:, :1]


def middle(output: Tensor) -> Tensor:
    return output[:, 1:2]
