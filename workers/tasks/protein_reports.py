"""What a model makes of held-out chains, to look at: structures as PDB files, distance maps, figures a chain beside trivial predictors."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.batches import to_device
from workers.models.proteins import frames as rigid
from workers.models.proteins import scores
from workers.models.proteins.folding import Prediction
from workers.models.proteins.frames import Frames
from workers.sources.structures import Chain
from workers.tasks.base import Batch
from workers.tasks.protein_batches import HeldOut

STRUCTURES, ROWS = 4, 32  # chains that are drawn and written; chains in the table
THREE_LETTER = {
    **{"A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP"},
    **{"Y": "TYR", "V": "VAL"},
}
CARBONYL = 1.231  # Å
LAST_OXYGEN = (2.153, -1.062, 0.0)  # in the frame of a residue that none follows


def illustrations(
    held_out: HeldOut, predict: Callable[[Batch], Prediction], device: torch.device
) -> Mapping[str, bytes]:
    """The first chains: one file each, a picture of all; a table with a row a chain; the trivial predictors' figures."""
    files: dict[str, bytes] = {}
    maps, rows = [], []
    for index, chain in enumerate(held_out.chains[:ROWS]):
        batch = to_device(held_out.batch([index], seed=0), device)
        prediction = predict(batch)
        ca, true, mask = prediction.frames.translation, batch["atoms"][:, :, 1], batch["resolved"]
        plddt = 100 * prediction.plddt()[0].cpu().numpy()
        rows.append(
            {
                "chain": chain.name,
                "residues": len(chain),
                "lddt_ca": scores.lddt(ca, true, mask).item(),
                "tm_score": scores.tm_score(ca, true, mask).item(),
                "rmsd": scores.rmsd(ca, true, mask).item(),
                "mean_plddt": float(plddt.mean()),
                **_baseline_columns(held_out, index),
            }
        )
        if index < STRUCTURES:
            coordinates = backbone_with_oxygen(prediction.frames)[0].cpu().numpy()
            files[f"{chain.name}.pdb"] = pdb_text(chain.sequence, coordinates, plddt, chain.position).encode()
            maps.append((chain, ca[0].cpu()))
    files["chains.csv"] = _table(rows)
    files["distance_maps.png"] = _distance_maps(maps)
    files["baselines.json"] = _baselines(held_out)
    return files


def _baseline_columns(held_out: HeldOut, index: int) -> dict[str, float]:
    return {
        f"{name}_{score}": value
        for name, found in held_out.baselines(index).items()
        for score, value in found._asdict().items()
    }


def _table(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue().encode()


def _baselines(held_out: HeldOut) -> bytes:
    columns = [_baseline_columns(held_out, index) for index in range(min(ROWS, len(held_out.chains)))]
    means = {name: sum(row[name] for row in columns) / len(columns) for name in columns[0]}
    return json.dumps({"chains": len(columns), "mean": means}, indent=1).encode()


def _distance_maps(maps: list[tuple[Chain, Tensor]]) -> bytes:
    """A row a chain: CA distances as predicted, and as in the file (grey: not resolved)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2 * len(maps)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(maps), 2, squeeze=False)
    for row, (chain, ca) in zip(axes, maps, strict=True):
        true = torch.from_numpy(np.where(chain.resolved[:, None], chain.backbone[:, 1], np.nan))
        for axis, points, title in zip(row, (ca, true), ("predicted", "true"), strict=True):
            distances = (points.unsqueeze(1) - points.unsqueeze(0)).norm(dim=-1).numpy()
            axis.set_facecolor("lightgrey")
            drawn = axis.imshow(distances, vmin=0, vmax=30, cmap="viridis_r")
            axis.set_title(f"{chain.name} {title}", fontsize=9)
        figure.colorbar(drawn, ax=row, label="CA distance in Å", shrink=0.8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


# --- structures as text -----------------------------------------------------------------------------------------------


def backbone_with_oxygen(frames: Frames) -> Tensor:
    """N, CA, C, O (B, L, 4, 3) in Å. O lies in the plane of CA, C and the next N, and points away from both."""
    atoms = rigid.backbone(frames)
    ca, c, following = atoms[:, :-1, 1], atoms[:, :-1, 2], atoms[:, 1:, 0]
    away = rigid.unit(rigid.unit(c - ca) + rigid.unit(c - following))
    last = Frames(frames.rotation[:, -1:], frames.translation[:, -1:])
    last_oxygen = last.apply(torch.tensor([LAST_OXYGEN], device=c.device)).squeeze(-2)
    oxygen = torch.cat([c + CARBONYL * away, last_oxygen], dim=1)
    return torch.cat([atoms, oxygen.unsqueeze(-2)], dim=-2)


def pdb_text(
    sequence: str, coordinates: NDArray[Any], plddt: NDArray[Any], position: NDArray[np.int64] | None = None
) -> str:
    """A PDB file of one chain: ``coordinates`` (L, 4, 3) of N, CA, C, O; ``plddt`` (L,), 0 to 100, as B factor."""
    import biotite.structure as structure
    import biotite.structure.io.pdb as pdb

    atoms = structure.AtomArray(4 * len(sequence))
    atoms.coord = coordinates.reshape(-1, 3).astype(np.float32)
    atoms.chain_id[:] = "A"
    numbers = np.arange(len(sequence)) if position is None else position
    atoms.res_id = np.repeat(numbers + 1, 4)
    atoms.res_name = np.repeat([THREE_LETTER.get(letter, "UNK") for letter in sequence], 4)
    atoms.atom_name = np.tile(["N", "CA", "C", "O"], len(sequence))
    atoms.element = np.tile(["N", "C", "C", "O"], len(sequence))
    atoms.set_annotation("b_factor", np.repeat(plddt, 4))
    file = pdb.PDBFile()
    file.set_structure(atoms)
    return str(file)
