"""Protein chains: from the sequence to the backbone in space, with a confidence for each residue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workers.kinds.proteins import ProteinStructureTask
from workers.models.proteins import frames as rigid
from workers.models.proteins import losses, scores
from workers.models.proteins.baselines import mean_distances
from workers.models.proteins.folding import RESIDUES, Folding, Prediction
from workers.sources import chains
from workers.sources.problems import BadDataError
from workers.tasks.base import Batch, Datasets, ModelFacts
from workers.tasks.protein_batches import Crops, HeldOut, encoded
from workers.tasks.protein_reports import backbone_with_oxygen, illustrations, pdb_text


class ProteinStructure:
    def __init__(self, spec: ProteinStructureTask, *, seed: int) -> None:
        self._spec = spec
        self._held_out: HeldOut | None = None

    def datasets(self) -> Datasets:
        """Evaluation has the held-out chains, whole, and the middle crop of training chains, by which ``train_lddt_ca`` is measured."""
        data, recycling = self._spec.data, self._spec.model.recycling
        found = chains.read(data)
        train = Crops(found.train, data.crop_size, data.crops_per_chain, recycling, self._spec.loss.unclamped)
        self._held_out = HeldOut(found.evaluation, train, recycling, mean_distances(found.train))
        return Datasets(train, self._held_out)

    def model(self) -> nn.Module:
        return build_model(self._spec, self.facts())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total = self._total(predicted(model, batch), batch)
        return total.sum(), torch.tensor(len(total), device=total.device)

    def _total(self, prediction: Prediction, batch: Batch) -> Tensor:
        """(B,), in fp32 also under autocast."""
        weights = self._spec.loss
        atoms, mask = batch["atoms"], batch["resolved"]
        with torch.autocast(atoms.device.type, enabled=False):
            true = rigid.from_three_points(*atoms.unbind(-2))
            passes = [
                losses.frame_aligned_point_error(
                    frames, frames.translation, true, true.translation, mask, batch["clamped"]
                )
                for frames in prediction.passes
            ]
            beta = rigid.pseudo_beta(*atoms.unbind(-2))
            ca, own = prediction.frames.translation, rigid.backbone(prediction.frames)
            return (
                weights.fape * torch.stack(passes).mean(0)
                + weights.distogram * losses.distogram(prediction.distogram, beta, mask)
                + weights.confidence * losses.confidence(prediction.confidence, ca, true.translation, mask)
                + weights.geometry * losses.peptide_geometry(own, batch["bonded"])
            )

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Means over held-out chains; ``train_lddt_ca`` over crops of training chains. Each ``baseline_`` is the better trivial predictor's."""
        prediction = predicted(model, batch)
        held_out, mask, true = batch["held_out"], batch["resolved"], batch["atoms"][:, :, 1]
        ca = prediction.frames.translation
        lddt = scores.lddt(ca, true, mask)
        chosen = held_out > 0
        plddt = (prediction.plddt() * mask).sum(1) / mask.sum(1).clamp_min(1)
        measured = {
            "loss": self._total(prediction, batch)[chosen],
            "lddt_ca": lddt[chosen],
            "tm_score": scores.tm_score(ca[chosen], true[chosen], mask[chosen]) if chosen.any() else lddt[chosen],
            "rmsd": scores.rmsd(ca[chosen], true[chosen], mask[chosen]),
            "plddt": plddt[chosen],
            "train_lddt_ca": lddt[~chosen],
            "baseline_lddt_ca": batch["baseline"][chosen, 0],
            "baseline_tm_score": batch["baseline"][chosen, 1],
            "baseline_rmsd": batch["baseline"][chosen, 2],
        }
        return {name: (each.sum(), torch.tensor(len(each), device=each.device)) for name, each in measured.items()}

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        assert self._held_out is not None, "datasets() comes first"
        return illustrations(self._held_out, lambda batch: predicted(model, batch), device)

    def facts(self) -> ModelFacts:
        return FACTS


FACTS = ModelFacts((), preprocessing={"residues": RESIDUES, "features": ["sequence"]})


def predicted(model: nn.Module, batch: Batch) -> Prediction:
    found: Prediction = model(batch["residues"], batch["position"], batch["mask"], batch["recycles"])
    return found


# --- the model, also without its data ---------------------------------------------------------------------------------


def build_model(spec: ProteinStructureTask, facts: ModelFacts) -> nn.Module:
    return Folding(spec.model)


def predict(model: nn.Module, spec: ProteinStructureTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
    """``inputs``: N sequences of one-letter codes, (N,) or (N, 1). Gives for each its ``coordinates`` (L, 4, 3) of N, CA, C, O in Å,
    ``plddt`` (L,) from 0 to 100, their mean, and the structure as the text of a PDB file with the confidence in the B factor."""
    sequences = [_sequence(value, row, spec.data.max_residues) for row, value in enumerate(np.asarray(inputs).ravel())]
    found = [_predict_one(model, sequence) for sequence in sequences]
    return {
        "sequence": np.array(sequences, dtype=object),
        "mean_plddt": np.array([plddt.mean() for _, plddt in found]),
        "pdb": np.array([pdb_text(s, *each) for s, each in zip(sequences, found, strict=True)], dtype=object),
        "coordinates": _objects([coordinates for coordinates, _ in found]),
        "plddt": _objects([plddt for _, plddt in found]),
    }


def _sequence(value: Any, row: int, longest: int) -> str:
    text = value.strip().upper() if isinstance(value, str) else ""
    if not text or not (text.isascii() and text.isalpha()):
        raise BadDataError("inputs", f"row {row}: {str(value)[:40]!r} is no sequence of one-letter codes")
    if len(text) > longest:
        raise BadDataError("inputs", f"row {row}: {len(text)} residues; the model's data.max_residues is {longest}")
    return text


def _predict_one(model: nn.Module, sequence: str) -> tuple[NDArray[Any], NDArray[Any]]:
    residues = encoded(sequence).unsqueeze(0)
    with torch.no_grad():
        prediction: Prediction = model(residues, torch.arange(len(sequence))[None], torch.ones(1, len(sequence)))
    return backbone_with_oxygen(prediction.frames)[0].numpy(), 100 * prediction.plddt()[0].numpy()


def _objects(values: list[NDArray[Any]]) -> NDArray[Any]:
    """An array of arrays, whatever their lengths are."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
