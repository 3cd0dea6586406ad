"""The border to the cluster: what the reconciler needs, as a protocol with plain values.

``service/ray_cluster.py`` fulfils it with Ray, ``service/fake_cluster.py`` in memory; one contract test holds for both.
All calls are idempotent: everything that is launched has a name made of job id and attempt, the fencing token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from workers.reports import GroupShape, Observation, StopMode
from workers.spec import JobSpec


@dataclass(frozen=True)
class Resources:
    cpus: float
    gpus: float
    memory: int  # bytes


@dataclass(frozen=True)
class Node:
    id: str
    address: str
    total: Resources
    draining: bool = False  # Ray, or an operator, takes it away soon: nothing new goes there, and what is there leaves


@dataclass(frozen=True)
class Capacity:
    nodes: tuple[Node, ...]
    cluster_id: str | None = None  # another cluster at the same address has another one


@dataclass(frozen=True)
class Launch:
    """One attempt of a job. ``name`` is ``<job id>.<attempt>``."""

    name: str
    job_id: str
    attempt: int
    spec: JobSpec
    shape: GroupShape  # to begin with
    folder: str  # the job's folder in storage (workers/jobfolder.py)
    mlflow_url: str | None
    experiment: str  # name of the MLflow experiment
    checkpoints: str | None = None  # folder or URL of the job's checkpoints; None: in its folder
    bundle: str | None = None  # where the uploaded bundle with the job's code is
    healthy_from: int = 0  # attempt from which on checkpoints count that are not healthy


class Cluster(Protocol):
    """Raises ClusterUnavailableError when the cluster cannot be reached; the reconciler then leaves everything as it is."""

    def capacity(self) -> Capacity: ...

    def launch(self, launch: Launch) -> None:
        """Starts the attempt's controller unless one of that name exists already. Returns before training starts."""

    def observe(self, seen: Mapping[str, int]) -> Mapping[str, Observation | None]:
        """For each attempt name (value: highest event sequence known): its state, or None when there is no such controller."""

    def stop(self, name: str, mode: StopMode) -> None: ...

    def reshape(self, name: str, shape: GroupShape) -> None:
        """What the attempt's worker group should be like from now on. Returns before it is; nothing happens when it is already."""

    def remove(self, name: str) -> None:
        """Ends whatever is left of the attempt (controller, workers, placement group). No error when there is nothing."""

    def names(self) -> frozenset[str]:
        """Attempts of which something is alive, known to the database or not."""

    def close(self) -> None: ...


class ClusterUnavailableError(RuntimeError):
    """The cluster did not answer. ``str()`` is a sentence for operators."""
