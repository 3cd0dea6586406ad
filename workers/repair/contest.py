"""Which of several rates does best, by short trials from one point of the run, as in successive halving (Jamieson and Talwalkar 2016): a rate under
which nothing is wrong any more need not be a good one. Pure functions.

A rate that helped is the champion; a neighbour on a grid of thirds is tried from the same snapshot, for as many steps. The better of the two is the
champion then, until both its neighbours are known to be worse. The run goes on from the end of the champion's trial.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.repair.acts import Act, Entry
from workers.repair.ladder import TOO_SHORT

FACTOR = 3.0
BETTER = 0.02  # by that share of the loss, at least: less is noise
LONGER = 0.15  # likewise, for longer steps than those that mended steps that were too long: they look better at first than they are
HALVED = 0.5  # of its first loss: what learns so well need not be compared with anything
MOST = 5  # rates of a contest, the first with them
NEAR = 1.2  # two that differ by less are one


def about_rate(act: Act) -> bool:
    """Whether other rates can be compared with it: from the same weights, which have to be somewhere."""
    return act.rewind is not None and act.patches is None and act.rate != 1.0


def better(challenger: float | None, champion: float | None, by: float = BETTER) -> bool:
    """By the loss at the same age; None: nothing is known of it, or it failed."""
    if challenger is None:
        return False
    return champion is None or challenger < champion - by * abs(champion)


def margin(challenger: Act, champion: Act) -> float:
    """By which share of the loss it has to be better."""
    return LONGER if challenger.code not in TOO_SHORT and challenger.rate > champion.rate else BETTER


def next_rate(champion: Act, tried: Sequence[Act], lowest: float) -> float | None:
    """A neighbour that was not tried yet; None: both were, or there were enough of them. ``tried``: for the same finding, the champion with them.
    ``lowest``: of all rates."""
    alike = [act.rate for act in tried if act.rate_at_least == champion.rate_at_least]
    if sum(act.against is not None for act in tried) + 1 >= MOST:
        return None
    for rate in (champion.rate * FACTOR, champion.rate / FACTOR):
        if rate >= lowest and not any(max(rate / other, other / rate) < NEAR for other in alike):
            return rate
    return None


def is_doubtful(first: float | None, score: float) -> bool:
    """Whether something else may do better: nothing is wrong, but not much is learnt either. ``first``: the loss when the trial began."""
    return first is not None and score > HALVED * first


def episode(number: int, entries: Sequence[Entry]) -> list[Entry]:
    """That one and those that it took the place of, one after another, the newest first."""
    found: list[Entry] = []
    next_one: int | None = number
    while next_one is not None:
        found.append(entries[next_one - 1])
        next_one = found[-1].act.instead_of
    return found


def gives_way(act: Act, replaced: Act) -> bool:
    """Whether what was before ``replaced`` is what one goes back to from ``act`` too: nothing of ``replaced`` is in it."""
    if act.against is not None:
        return act.against != replaced.number
    return replaced.patches is not None


def came_from(number: int, entries: Sequence[Entry]) -> int:
    """The step whose state undoing it brings back."""
    act = entries[number - 1].act
    while act.instead_of is not None and gives_way(act, entries[act.instead_of - 1].act):
        act = entries[act.instead_of - 1].act
    return act.step


def window_of(act: Act, step: int, fewest: int) -> int:
    """Steps of the trials of a contest with ``act``, whose own was over after ``step``: shorter than that one, which had to show that nothing is
    wrong any more."""
    return max(fewest, (step - act.step) // 2)


def newer_half(after: int, through: int) -> range:
    """Of the steps since."""
    return range(through - (through - after) // 2 + 1, through + 1)
