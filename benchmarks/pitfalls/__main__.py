"""``python -m benchmarks.pitfalls verify | judge | repair | table``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.scoring import Judged


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pitfalls", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verifying = commands.add_parser("verify", help="are the cases what they claim to be")
    verifying.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    judging = commands.add_parser("judge", help="what the rules find, and how soon")
    judging.add_argument("--seeds", type=int, nargs="+", default=[0, 100], help="100 and more are held back")
    judging.add_argument("--cache", type=Path, help="folder for records of runs, of your own only: they are pickles")
    judging.add_argument("--kept", action="store_true", help="only runs that the folder has")
    judging.add_argument("--healed", action="store_true", help="sick cases without their fault too, as healthy runs")
    judging.add_argument("--wrong", action="store_true", help="print only what was missed or misjudged")
    judging.add_argument("--store", action="store_true", help="the figures in benchmarks/results/pitfalls.json")
    repairing = commands.add_parser("repair", help="what repairs achieve, and what they harm")
    repairing.add_argument("--seeds", type=int, nargs="+", default=[0])
    repairing.add_argument("--allow", nargs="+", default=["live"], help="live, weights, architecture")
    repairing.add_argument("--processes", type=int, default=1)
    repairing.add_argument("--sick", action="store_true", help="leave out healthy cases")
    repairing.add_argument(
        "--store", action="store_true", help="the figures in benchmarks/results/pitfalls_repairs_*.json"
    )
    printing = commands.add_parser("table", help="the cases, in Markdown")
    for command in (verifying, judging, repairing, printing):
        command.add_argument(
            "--only", nargs="+", default=[""], help="cases whose names begin so, as vision or deep/sigmoid"
        )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = chosen(arguments.only)
    if arguments.command == "verify":
        return _verify(cases, arguments.seeds)
    if arguments.command == "judge":
        return _judge(cases, arguments)
    if arguments.command == "repair":
        return _repair(cases, arguments)
    from benchmarks.pitfalls.table import table

    print(table(cases))
    return 0


def chosen(only: list[str]) -> list[Case]:
    from benchmarks.pitfalls.cases import ALL

    cases = [case for case in ALL if case.name.startswith(tuple(only))]
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


def _judge(cases: list[Case], arguments: argparse.Namespace) -> int:
    from benchmarks.pitfalls.judging import judged
    from benchmarks.pitfalls.kept import path_of, recorded
    from benchmarks.pitfalls.results import parts, store

    runs = []
    for case in cases:
        for seed in arguments.seeds:
            for healed in (False, True) if arguments.healed and case.sick else (False,):
                if arguments.kept and not path_of(case, seed, arguments.cache, healed=healed).exists():
                    continue
                runs.append(judged(case, seed, recorded(case, seed, arguments.cache, healed=healed), healed=healed))
                _tell(runs[-1], arguments.wrong)
    for title, figures in parts(runs).items():
        print(f"--- {title}: {_figures(figures['all'])}")
        for code, of_code in figures["by_code"].items():
            print(f"{code:<22} {_figures(of_code)}")
    if arguments.store:
        store(runs)
    return 0


def _repair(cases: list[Case], arguments: argparse.Namespace) -> int:
    from benchmarks.pitfalls.repaired import figures, line, named, store

    asked = [(case.name, seed) for case in cases for seed in arguments.seeds if case.sick or not arguments.sick]
    runs = []
    with get_context("spawn").Pool(arguments.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for run in pool.imap(partial(named, allow=arguments.allow), asked):
            runs.append(run)
            print(line(run), flush=True)
    for name, value in figures(runs).items():
        print(f"{name}: {value}")
    if arguments.store:
        print(store(runs))
    return 0


def _tell(run: Judged, only_wrong: bool) -> None:
    quiet = run.code is None
    mark = "well" if run.well else "MISSED" if quiet else "ALARM" if run.expected is None else "OTHER"
    if not (run.well and only_wrong):
        told = f"{run.code} at {run.found_at}/{run.steps}, from {run.first_bad_step} on" if not quiet else "nothing"
        print(f"{mark:<6} {run.name} {run.seed}: {run.expected or 'healthy'} -> {told}", flush=True)


def _figures(figures: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.2f}" if isinstance(value, float) else f"{name}={value}"
        for name, value in figures.items()
        if value is not None
    )


if __name__ == "__main__":
    sys.exit(main())
