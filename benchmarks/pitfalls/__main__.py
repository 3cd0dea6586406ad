"""``python -m benchmarks.pitfalls verify | judge | table``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks.pitfalls.case import Case


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pitfalls", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify", help="are the cases what they claim to be")
    verifying.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    judging = commands.add_parser("judge", help="what the rules find, and how soon")
    judging.add_argument("--seeds", type=int, nargs="+", default=[0, 100], help="100 and more are held back")
    printing = commands.add_parser("table", help="the cases, in Markdown")
    for command in (verifying, judging, printing):
        command.add_argument("--only", default="", help="cases whose names begin with this, as vision or deep/sigmoid")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = chosen(arguments.only)
    if arguments.command == "verify":
        return _verify(cases, arguments.seeds)
    if arguments.command == "judge":
        return _judge(cases, arguments.seeds)
    from benchmarks.pitfalls.table import table

    print(table(cases))
    return 0


def chosen(only: str) -> list[Case]:
    """Of those whose data is there."""
    from benchmarks.pitfalls.cases import ALL

    cases = [case for case in ALL if case.name.startswith(only)]
    if not cases:
        raise SystemExit(f"--only {only!r}: no case begins so; families are {sorted({case.family for case in ALL})}")
    return cases


def _verify(cases: list[Case], seeds: list[int]) -> int:
    from benchmarks.pitfalls.cases import ALL
    from benchmarks.pitfalls.verify import lines, store, verify

    results = []
    for case in cases:
        results.append(verify(case, seeds))
        print(*lines(results[-1]), sep="\n", flush=True)
    store(results, [case.name for case in ALL])
    wrong = [result.name for result in results if not result.true]
    print(f"{len(results) - len(wrong)} of {len(results)} cases are what they claim to be")
    return 1 if wrong else 0


def _judge(cases: list[Case], seeds: list[int]) -> int:
    from benchmarks.pitfalls.judging import judged
    from benchmarks.pitfalls.scoring import by_code, score

    runs = []
    for case in cases:
        for seed in seeds:
            runs.append(judged(case, seed))
            last = runs[-1]
            mark = "right" if last.right else "quiet" if last.code is None else "other"
            print(
                f"{mark} {last.name} {seed}: {last.expected} -> {last.code} at {last.found_at}/{last.steps}", flush=True
            )
    for title, part in (
        ("tuned", [run for run in runs if not run.held_back]),
        ("held back", [run for run in runs if run.held_back]),
    ):
        print(f"--- {title}: {_figures(score(part))}")
        for code, figures in by_code(part).items():
            print(f"{code:<22} {_figures(figures)}")
    return 0


def _figures(figures: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.2f}" if isinstance(value, float) else f"{name}={value}"
        for name, value in figures.items()
        if value is not None
    )


if __name__ == "__main__":
    sys.exit(main())
