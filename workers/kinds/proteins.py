"""Protein structure: which chains, which network, which weights of the losses."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.spec_base import Model, PathText, TaskModel

Channels = Annotated[int, Field(ge=4, le=4096)]
Few = Annotated[int, Field(ge=1, le=64)]
Residues = Annotated[int, Field(ge=4, le=10_000)]
LossWeight = Annotated[float, Field(ge=0, le=1000)]
Places = PathText | Annotated[list[PathText], Field(min_length=1, max_length=100_000)]


class StructureData(Model):
    """Protein chains of PDB and mmCIF files, also gzipped: ``.pdb``, ``.ent``, ``.cif``, ``.mmcif``, each also with ``.gz``."""

    path: Places = Field(description="a folder, in which all such files are read, or a list of files")
    evaluation_path: Places | None = Field(None, description="null: hold out a share of the chains")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of the chains that is held out")
    clusters: PathText | None = Field(
        None,
        description="CSV file with the columns file and cluster: kin are held out together; default: each file alone",
    )
    chain: Literal["first", "longest", "all"] = Field("first", description="which protein chains of a file are used")
    min_residues: Residues = Field(16, description="shorter chains are left out")
    max_residues: Residues = Field(512, description="longer chains are left out; memory grows with the square")
    crop_size: Residues = Field(64, description="consecutive residues that a training sample has at most")
    crops_per_chain: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4, description="training samples of a chain in an epoch, each a random crop"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_residues > self.max_residues:
            raise PydanticCustomError(
                "residue_range",
                "min_residues {least} is larger than max_residues {most}",
                {"least": self.min_residues, "most": self.max_residues},
            )
        if self.evaluation_path is not None and self.clusters is not None:
            raise PydanticCustomError(
                "clusters", "clusters say what is held out; with evaluation_path nothing is, so give one of the two"
            )
        return self


class FoldingModel(Model):
    """A compact AlphaFold 2 for single sequences: a trunk of pair-biased attention and triangle updates, then invariant point attention."""

    single_width: Channels = Field(96, description="channels of a residue")
    pair_width: Channels = Field(32, description="channels of a pair of residues")
    blocks: Few = Field(3, description="of the trunk")
    heads: Few = Field(4, description="of the trunk's attention; they divide single_width and pair_width")
    triangle_attention: bool = Field(False, description="besides triangle multiplication; slower, for larger data")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of the trunk's updates, along whole rows or columns of pairs; for few chains, 0.1 to 0.25"
    )
    structure_iterations: Few = Field(4, description="passes of the structure module, which share their weights")
    point_heads: Few = Field(6, description="heads of invariant point attention")
    recycling: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="times that the result is fed back; in training a random number up to it"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for name in ("single_width", "pair_width"):
            if getattr(self, name) % self.heads:
                raise PydanticCustomError(
                    "heads",
                    "{name} {width} is not a multiple of heads {heads}",
                    {"name": name, "width": getattr(self, name), "heads": self.heads},
                )
        return self


class FoldingLoss(Model):
    """Weights of what is added up."""

    fape: LossWeight = Field(1.0, description="frame aligned point error of the backbone, mean over the iterations")
    unclamped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of the training crops whose errors beyond 10 Å count in full"
    )
    distogram: LossWeight = Field(0.3, description="cross-entropy of the distances between residues")
    confidence: LossWeight = Field(0.05, description="cross-entropy of the predicted lDDT-CA of each residue")
    geometry: LossWeight = Field(0.02, description="peptide bonds and their angles out of range")


class ProteinStructureTask(TaskModel):
    kind: Literal["protein_structure"]
    data: StructureData
    model: FoldingModel = Field(default_factory=FoldingModel)
    loss: FoldingLoss = Field(default_factory=FoldingLoss)

    def metrics(self) -> tuple[str, ...]:
        return (
            *("loss", "lddt_ca", "tm_score", "rmsd", "plddt", "train_lddt_ca"),
            *("baseline_lddt_ca", "baseline_tm_score", "baseline_rmsd"),
        )

    def paths(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for name in ("path", "evaluation_path", "clusters"):
            value = getattr(self.data, name)
            if isinstance(value, str):
                found.append((f"task.data.{name}", value))
            elif value is not None:
                found += [(f"task.data.{name}[{index}]", each) for index, each in enumerate(value)]
        return found
