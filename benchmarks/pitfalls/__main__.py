"""``python -m benchmarks.pitfalls verify | judge | table``."""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.data import available


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pitfalls", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify", help="are the cases what they claim to be")
    verifying.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for command in (verifying,):
        command.add_argument("--only", default="", help="cases whose names begin with this, as vision or deep/sigmoid")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = chosen(arguments.only)
    if arguments.command == "verify":
        return _verify(cases, arguments.seeds)
    return 0


def chosen(only: str) -> list[Case]:
    """Of those whose data is there."""
    from benchmarks.pitfalls.cases import ALL

    cases = [case for case in ALL if case.name.startswith(only) and available(case.needs)]
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


if __name__ == "__main__":
    sys.exit(main())
