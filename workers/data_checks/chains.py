"""Protein chains of structure files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.data_checks import duplicates
from workers.data_checks.duplicates import Contents
from workers.data_checks.report import Clock, Report, counted, finding, listed, looked_at, percent, sampled
from workers.kinds.proteins import ProteinStructureTask, StructureData
from workers.sources import chains
from workers.sources.problems import BadDataError
from workers.sources.structures import Chain, read_chains
from workers.watch.findings import Finding

LEFT_OUT = 0.5  # share of the chains that are too short or too long, from which on it is a warning
UNSEEN = 0.2  # share of the residues without coordinates of their backbone, from which on it is worth a note
UNKNOWN = 0.2  # share of the residues that are none of the twenty


@dataclass
class Part:
    files: int
    seen: int = 0
    used: list[Chain] = field(default_factory=list)
    left_out: list[Chain] = field(default_factory=list)


def check(task: ProteinStructureTask, clock: Clock) -> Report:
    """Raises BadDataError for what cannot be used."""
    data = task.data
    train, held_out = chains.files_of(data)
    other = "task.data.path" if data.evaluation_path is None else "task.data.evaluation_path"
    parts = {
        "evaluation": _read(other, held_out, data, clock.share(0.4)),
        "training": _read("task.data.path", train, data, clock),
    }
    contents = {part: _contents(found.used) for part, found in parts.items()}
    findings = [
        *_left_out(parts, data),
        *duplicates.overlaps(contents["training"], {"evaluation": contents["evaluation"]}, "chains"),
        *_residues(parts["training"].used),
        *duplicates.repeats(contents["training"], "chains"),
    ]
    residues = {part: sum(map(len, found.used)) for part, found in parts.items()}
    lengths = sorted(len(chain) for chain in parts["training"].used)
    summary = {
        "chains": {part: len(parts[part].used) for part in ("training", "evaluation")},
        "residues": {part: residues[part] for part in ("training", "evaluation")},
        "left_out": {part: len(parts[part].left_out) for part in ("training", "evaluation")},
        "lengths": [lengths[0], lengths[len(lengths) // 2], lengths[-1]] if lengths else [],
    }
    numbers = ", ".join(
        f"{counted(len(parts[part].used), 'chain')} with {residues[part]:,} residues for {part}"
        for part in ("training", "evaluation")
    )
    seen, total = sum(part.seen for part in parts.values()), sum(part.files for part in parts.values())
    return Report(f"Proteins: {numbers}.", summary, findings, looked_at(seen, total, "files"))


def _read(where: str, files: Sequence[Path], data: StructureData, clock: Clock) -> Part:
    part = Part(len(files))
    for index in sampled(len(files), clock):
        for found in read_chains(where, files[index], data.chain):
            fits = data.min_residues <= len(found) <= data.max_residues
            (part.used if fits else part.left_out).append(found)
        part.seen += 1
    if part.seen == part.files and not part.used:
        sizes = ", ".join(f"{chain.name} {len(chain)}" for chain in part.left_out[:5])
        raise BadDataError(
            where, f"no chain has {data.min_residues} to {data.max_residues} residues; there are: {sizes}"
        )
    return part


def _contents(used: Sequence[Chain]) -> Contents:
    """By their sequence: another experiment on the same protein has nearly the same structure."""
    contents = Contents(len(used), lambda row: used[row].name)
    for row, chain in enumerate(used):
        contents.add(row, chain.sequence.encode())
    return contents


def _left_out(parts: dict[str, Part], data: StructureData) -> list[Finding]:
    found = []
    for name in ("training", "evaluation"):
        part = parts[name]
        total = len(part.used) + len(part.left_out)
        share = len(part.left_out) / max(1, total)
        if not part.left_out:
            continue
        named = [f"{chain.name} ({len(chain)})" for chain in part.left_out]
        found.append(
            finding(
                "samples_left_out",
                "warning" if share >= LEFT_OUT else "note",
                {"part": name, "share": share, "count": len(part.left_out), "examples": named[:5]},
                f"{len(part.left_out)} of {counted(total, 'chain')} for {name} are not used, because they do not have "
                f"{data.min_residues} to {data.max_residues} residues: {listed(named)}.",
                "Raise task.data.max_residues (memory grows with its square) or lower task.data.min_residues, if they are wanted.",
            )
        )
    return found


def _residues(used: Sequence[Chain]) -> list[Finding]:
    total = max(1, sum(map(len, used)))
    unseen = 1 - sum(int(chain.resolved.sum()) for chain in used) / total if used else 0.0
    unknown = sum(chain.sequence.count("X") for chain in used) / total
    found = []
    if unseen >= UNSEEN:
        found.append(
            finding(
                "missing_residues",
                "note",
                {"share": unseen},
                f"{percent(unseen)} of the training residues have no coordinates of N, CA and C. They are masked: no gradient comes "
                f"from them.",
                "Use structures of better resolution, if there are any.",
            )
        )
    if unknown >= UNKNOWN:
        found.append(
            finding(
                "unknown_residues",
                "note",
                {"share": unknown},
                f"{percent(unknown)} of the training residues are none of the twenty amino acids, and all look the same to the network.",
                "Check that the files hold the proteins that are meant.",
            )
        )
    return found
