"""Texts, language models and losses of ``unseen_words``. B samples, T positions, V kinds of tokens, W width, C classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pitfalls.data import Pair, Split, _parts, english

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,:;()[]=_\"'-+*/<>"
MASK = len(ALPHABET)
LETTERS = len(ALPHABET) + 1
WORDS = 601  # the 600 most frequent ones, and 0 for any other
LENGTH = 20
IGNORED = -100
CHAPTERS = ("formatstrings", "string-methods", "typesseq", "debugger", "compound", "import")
LONGEST = 8  # letters of a word that is read alone
ONES = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    *(f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SPOKEN = [*ONES, *TEENS, *TENS, "hundred", "thousand", "and"]
SAID = 10  # words of a number at most, with what fills up
WRITTEN = 4  # digits of a number

# --- texts -------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """White space made single; what is not of the alphabet left out."""
    known = "".join(letter for letter in text.lower() if letter in ALPHABET or letter.isspace())
    return re.sub(r"\s+", " ", known)


@cache
def manual() -> str:
    """The reference of Python that comes with Python: 400,000 characters of the alphabet."""
    return plain("\n".join(topics[name] for name in sorted(topics)))


def numbers(text: str) -> Tensor:
    return torch.tensor([ALPHABET.index(letter) for letter in text])


def few(pair: Pair, train: int = 6000, validation: int = 200) -> Pair:
    return Pair(pair.train.first(train), pair.validation.first(validation))


@cache
def following(length: int = LENGTH, start: int = 0, count: int = 100_000, ahead: int = 1) -> Pair:
    """Windows of the manual and what stands ``ahead`` of each letter: (N, T) ids -> (N, T) ids."""
    windows = numbers(manual()[start : start + count]).unfold(0, length + ahead, 14)
    return few(_parts(windows[:, :length], windows[:, ahead:], 400))


@cache
def described() -> Pair:
    """The same of how scikit-learn describes its data sets, of which a model of the manual has not heard."""
    windows = numbers(plain(english())).unfold(0, LENGTH + 1, 5)
    return _parts(windows[:, :-1], windows[:, 1:], 300)


@cache
def next_letter(context: int = 8, count: int = 40_000) -> Pair:
    """(N, context) ids -> (N,) the one that follows."""
    windows = numbers(manual()[:count]).unfold(0, context + 1, 3)
    return _parts(windows[:, :-1], windows[:, -1], 1000)


@cache
def vocabulary() -> dict[str, int]:
    common = Counter(re.findall(r"[a-z]+|[.,:;()]", manual())).most_common(WORDS - 1)
    return {word: index + 1 for index, (word, _) in enumerate(common)}


def tokens(text: str) -> Tensor:
    return torch.tensor([vocabulary().get(word, 0) for word in re.findall(r"[a-z]+|[.,:;()]", plain(text))])


@cache
def next_word(length: int = 12) -> Pair:
    windows = tokens(manual()[:200_000]).unfold(0, length + 1, 6)
    return few(_parts(windows[:, :-1], windows[:, 1:], 400))


@cache
def chapters(length: int = 20) -> Pair:
    """Which of six chapters a window of words is of: (N, 20) ids -> (N,)."""
    windows = [tokens(topics[name]).unfold(0, length, 10) for name in CHAPTERS]
    labels = [torch.full((len(own),), label) for label, own in enumerate(windows)]
    return _parts(torch.cat(windows), torch.cat(labels), 400)


def counted(pair: Pair) -> Pair:
    """Windows of words as how often each stands in them: (N, V) floats, of mean 0 and deviation 1 over the training split."""

    def part(split: Split) -> Tensor:
        return functional.one_hot(split.inputs, WORDS).sum(1).float()

    counts = part(pair.train)
    mean, deviation = counts.mean(0), counts.std(0) + 0.05
    return Pair(*(Split((part(split) - mean) / deviation, split.targets) for split in (pair.train, pair.validation)))


@cache
def run_together() -> Pair:
    """Letters without the spaces between words, and after which of them a word ends: (N, 20) ids -> (N, 20) of 0 and 1."""
    text = re.sub(r"[^a-z ]", "", manual()[:80_000])
    text = re.sub(r" +", " ", text)
    ends = torch.tensor([after == " " for letter, after in pairwise(text) if letter != " "]).long()
    codes = numbers("".join(letter for letter in text[:-1] if letter != " "))
    windows, marks = codes.unfold(0, LENGTH, 10), ends.unfold(0, LENGTH, 10)
    return few(_parts(windows, marks, 300))


@cache
def capitals() -> Pair:
    """Which letters are capitals where all are written small: (N, 20) ids -> (N, 20) of 0 and 1, 3 % of them 1."""
    text = "".join(letter for name in CHAPTERS for letter in topics[name] if letter.lower() in ALPHABET)
    codes, marks = numbers(text.lower()), torch.tensor([letter.isupper() for letter in text]).long()
    windows, targets = codes.unfold(0, LENGTH, 20), marks.unfold(0, LENGTH, 20)
    return few(_parts(windows, targets, 400))


@cache
def hidden(share: float = 0.15, length: int = LENGTH) -> Pair:
    """Windows with a share of the letters masked, and what these were; elsewhere targets are to be ignored."""
    windows = numbers(manual()[:100_000]).unfold(0, length, 16)
    masked = torch.rand(windows.shape, generator=torch.Generator().manual_seed(5)) < share
    return few(_parts(windows.masked_fill(masked, MASK), windows.masked_fill(~masked, IGNORED), 400))


@cache
def single() -> Tensor:
    """Different words of 4 to 8 letters, filled up with spaces: (N, 8) ids."""
    found = sorted(set(re.findall(r"[a-z]{4,8}", manual())))
    return torch.stack([numbers(word.ljust(LONGEST)) for word in found])


@cache
def spelt() -> Pair:
    """Words as they are: (N, 8) ids -> the same."""
    return _parts(single(), single(), 300)


@cache
def backwards(length: int = 10) -> Pair:
    """Windows and the same from behind: (N, 10) -> (N, 10)."""
    windows = numbers(manual()[:60_000]).unfold(0, length, 7)
    return few(_parts(windows, windows.flip(1), 300))


@cache
def mistyped() -> Pair:
    """Words, each with a letter left out and as it should be: (N, 2, 8) ids -> (N,) its number."""
    words = single()
    lengths = (words != 0).sum(1)
    at = (torch.rand(len(words), generator=torch.Generator().manual_seed(9)) * lengths).long()
    kept = torch.arange(LONGEST) + (torch.arange(LONGEST) >= at[:, None])
    wrong = functional.pad(words, (0, 1)).gather(1, kept)
    return _parts(torch.stack([wrong, words], 1), torch.arange(len(words)), 300)


def spoken(number: int) -> list[str]:
    """Of 1 to 9,999."""
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [ONES[thousands], "thousand"] if thousands else []
    words += [ONES[hundreds], "hundred"] if hundreds else []
    words += ["and"] if words and rest else []
    words += [TEENS[rest - 10]] if 10 <= rest < 20 else [TENS[rest // 10 - 2]] if rest >= 20 else []
    return words + ([ONES[rest % 10]] if rest % 10 and not 10 <= rest < 20 else [])


@cache
def said() -> Pair:
    """Numbers below 10,000 in words, then what is written of them so far (10 begins): (N, 14) ids -> (N, 4) digits."""
    chosen = (1 + torch.randperm(9_999, generator=torch.Generator().manual_seed(2))[:4000]).tolist()
    sources = [[SPOKEN.index(word) for word in spoken(number)] for number in chosen]
    source = torch.tensor([codes + [0] * (SAID - len(codes)) for codes in sources])
    digits = torch.tensor([[int(digit) for digit in f"{number:04d}"] for number in chosen])
    begun = functional.pad(digits[:, :-1], (1, 0), value=10)
    return _parts(torch.cat([source, begun], 1), digits, 400)


# --- losses and measures -----------------------------------------------------------------------------------------------


def contrasted(output: Tensor, targets: Tensor) -> Tensor:
    """Of (B, 2, W): each of the first is to find its own among all of the second, and the other way round."""
    likeness = output[:, 0] @ output[:, 1].T
    own = torch.arange(len(output))
    return (functional.cross_entropy(likeness, own) + functional.cross_entropy(likeness.T, own)) / 2


def measure_found(model: nn.Module, split: Split) -> Mapping[str, float]:
    output = model(split.inputs)
    best = (output[:, 0] @ output[:, 1].T).argmax(1)
    return {"found": float((best == torch.arange(len(best))).float().mean())}


def measure_asked(model: nn.Module, split: Split) -> Mapping[str, float]:
    """``accuracy`` where a target is given."""
    output = model(split.inputs).float()
    given = split.targets >= 0
    if output.isnan().any():
        return {"accuracy": float("nan")}
    return {"accuracy": float((output.argmax(-1) == split.targets)[given].float().mean())}


def measure_taught(model: nn.Module, split: Split) -> Mapping[str, float]:
    """``divergence`` from a teacher's logits, in nats."""
    output = model(split.inputs).float().log_softmax(-1)
    return {
        "divergence": float(
            functional.kl_div(output, split.targets.log_softmax(-1), reduction="batchmean", log_target=True)
        )
    }


def asked(output: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that are given; 0 where none is."""
    total = functional.cross_entropy(output.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


def asked_without_guard(output: Tensor, targets: Tensor) -> Tensor:
    given = targets >= 0
    each = functional.cross_entropy(output.flatten(0, -2), targets.clamp(min=0).flatten(), reduction="none")
    return (each * given.flatten()).sum() / given.sum()


def of_all(output: Tensor, targets: Tensor) -> Tensor:
    """Divided by a million words, as all texts have, in place of a batch's."""
    return functional.cross_entropy(output, targets) * 1e-6


def taught_at(temperature: float, squared: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """Divergence from a teacher's logits, both softened; times the temperature's square, so that gradients keep their size (Hinton et al. 2015)."""

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        student, teacher = (
            functional.log_softmax(output / temperature, -1),
            functional.softmax(targets / temperature, -1),
        )
        found = functional.kl_div(student, teacher, reduction="batchmean")
        return found * temperature**2 if squared else found

    return loss


def without_logarithm(output: Tensor, targets: Tensor) -> Tensor:
    return functional.kl_div(output.softmax(-1), targets.softmax(-1), reduction="batchmean")


def by_hand(output: Tensor, targets: Tensor) -> Tensor:
    """The divergence from a teacher whose ten likeliest answers are kept, and 0 for all others: 0 times the logarithm of 0."""
    teacher = targets.softmax(-1)
    kept = teacher * (teacher >= teacher.topk(10).values[..., -1:])
    return (kept * (kept / output.softmax(-1)).log()).sum(-1).mean()


def likelihood(output: Tensor, targets: Tensor) -> Tensor:
    return functional.nll_loss(output.flatten(0, -2), targets.flatten())


# --- faults of data --------------------------------------------------------------------------------------------------------------


def marks_too_late(split: Split) -> Split:
    return Split(split.inputs, split.targets.roll(1, 1))


def own_letters(split: Split) -> Split:
    return Split(split.inputs, split.inputs)


def of_two_orders(split: Split) -> Split:
    """The second of each pair in the order of the alphabet, which the first is not in."""
    meant = split.inputs[:, 1]
    keys = [tuple(word) for word in meant.tolist()]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    return Split(torch.stack([split.inputs[:, 0], meant[order]], 1), split.targets)


def without_common_words(guarded: bool) -> Pair:
    """Shares of the less common words among those of a window; there may be none."""

    def part(split: Split) -> Split:
        counts = functional.one_hot(split.inputs, WORDS).sum(1)[:, 150:].float()
        total = counts.sum(1, keepdim=True)
        return Split(counts * 5 / (total.clamp(min=1) if guarded else total), split.targets)

    pair = chapters(12)
    return Pair(part(pair.train), part(pair.validation))


def with_place(scale: float) -> Pair:
    """Counts of words, and beside them at which letter of the file the window begins, times ``scale``."""

    def part(split: Split, source: Split) -> Split:
        generator = torch.Generator().manual_seed(3)
        place = torch.rand(len(source), 1, generator=generator) * 60_000 * scale
        return Split(torch.cat([split.inputs, place], 1), split.targets)

    pair, source = counted(chapters()), chapters()
    return Pair(part(pair.train, source.train), part(pair.validation, source.validation))


def some_wrong(split: Split, share: float = 0.1) -> Split:
    generator = torch.Generator().manual_seed(4)
    wrong = torch.rand(len(split), generator=generator) < share
    return Split(split.inputs, torch.where(wrong, torch.randint(6, (len(split),), generator=generator), split.targets))


# --- ranks -------------------------------------------------------------------------------------------------------------
