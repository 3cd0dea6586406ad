"""What an operator can set: environment variables ``CHAINRULE_<FIELD>``, read once when a process starts."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from workers.accelerators import ACCELERATORS

CHECKPOINT_PROTOCOLS = ("s3", "file")

Seconds = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]


class Settings(BaseSettings):
    """Every process of one installation must see the same ``home``, ``database_url``, ``storage`` and ``checkpoints``."""

    model_config = SettingsConfigDict(
        env_prefix="CHAINRULE_", env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True
    )

    home: Path = Field(
        Path("~/.chainrule"), description="folder of the database, the keys and, by default, the storage"
    )
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['home'] / 'chainrule.db'}",
        description="SQLAlchemy URL; default: chainrule.db in home (SQLite)",
    )
    storage: Path = Field(
        default_factory=lambda data: data["home"] / "storage",
        description="folder of the jobs' results; default: storage in home",
    )
    checkpoints: str | None = Field(
        None,
        description="where checkpoints go: a folder, or a URL such as s3://bucket/prefix; default: into the job's folder in storage",
    )

    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8400
    admin_key: SecretStr | None = Field(
        None, description="the first API key, where a deployment makes its secrets; none: it is made, and kept in home"
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="folders that jobs may read, separated by ':'; none: any path, while the API listens on loopback",
    )

    allow_code: bool | None = Field(
        None,
        description="whether jobs may run code of their own on the workers; not set: only while the API listens on loopback",
    )
    max_file_bytes: Annotated[int, Field(ge=1 << 10, le=1 << 40)] = Field(512 << 20, description="largest upload")

    mlflow_url: str | None = Field(None, description="address of the MLflow server; none: jobs are not tracked there")
    mlflow_public_url: str | None = Field(
        None, description="the same as people's browsers reach it, for links to runs; none: like mlflow_url"
    )
    experiment: str = Field("chainrule", description="MLflow experiment of the jobs' runs")
    ray_address: str = Field("auto", description="host:port of the Ray head, or auto: the cluster of this machine")
    ray_join: bool = Field(
        False,
        description="for a scheduler on a machine that is no node of the cluster: it becomes one that takes no work, while the scheduler leads",
    )

    standby_workers: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="processes that wait for jobs with everything imported; each takes some 300 MB of memory"
    )

    lease_seconds: Seconds = Field(10, description="after so long without renewal another scheduler takes over")
    poll_active_seconds: Seconds = Field(0.2, description="pause between passes while jobs are active")
    poll_idle_seconds: Seconds = Field(0.5, description="pause between passes while none is; new jobs are seen at once")
    controller_lost_seconds: Seconds = Field(
        10, description="an attempt that the answering cluster does not know for so long is given up"
    )
    controller_silent_seconds: Seconds = Field(
        60, description="an attempt that does not answer for so long is given up"
    )
    launch_timeout_seconds: Seconds = Field(120, description="an attempt must have shown a sign of life by then")
    cancel_timeout_seconds: Seconds = Field(
        300,
        description="a cancel or a pause that takes longer becomes a kill; a paused job then goes on from an older checkpoint",
    )
    kill_timeout_seconds: Seconds = Field(10, description="a kill that takes longer removes everything of the attempt")
    tracking_timeout_seconds: Seconds = Field(60, description="how long an ended attempt may go on sending to MLflow")
    never_fits_seconds: Seconds = Field(
        60, description="a cluster smaller than a waiting job for so long is the answer"
    )
    backfill_seconds: Seconds = Field(
        300, description="how long smaller jobs may overtake the first of the queue before everything waits for it"
    )
    preemption: bool = Field(True, description="a job that does not fit pauses running jobs of lower priority")
    elastic_seconds: Seconds = Field(
        30, description="a job with a range of workers grows no sooner than so long after it started or was resized"
    )
    accelerator: str | None = Field(
        None, description=f"what the cluster's accelerators are, for plans: {', '.join(ACCELERATORS)}"
    )
    accelerator_price: Price | None = Field(None, description="of one accelerator an hour, for plans")
    cpu_price: Price | None = Field(None, description="of one processor core an hour, for plans")
    cpu_flops: Annotated[float, Field(gt=0)] = Field(5e10, description="fp32 FLOP/s of one processor core, for plans")
    efficiency: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="share of the declared peak that training reaches, for plans"
    )
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field("USD", description="of the prices")
    plan_timeout_seconds: Seconds = Field(120, description="a plan that takes longer is not computed")
    plan_memory: Annotated[int, Field(ge=1 << 28)] = Field(
        4 << 30, description="bytes of memory that computing a plan may take"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("accelerator", mode="after")
    @classmethod
    def _known_accelerator(cls, accelerator: str | None) -> str | None:
        if accelerator is not None and accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, got {accelerator!r}")
        return accelerator

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("storage", mode="after")
    @classmethod
    def _absolute_storage(cls, storage: Path) -> Path:
        return storage.expanduser().absolute()

    @field_validator("checkpoints", mode="after")
    @classmethod
    def _absolute_checkpoints(cls, checkpoints: str | None) -> str | None:
        if checkpoints is None:
            return None
        protocol, separator, _ = checkpoints.partition("://")
        if not separator:
            return str(Path(checkpoints).expanduser().absolute())
        if protocol not in CHECKPOINT_PROTOCOLS:
            raise ValueError(
                f"checkpoints must be a folder or begin with {' or '.join(CHECKPOINT_PROTOCOLS)}, got {checkpoints!r}"
            )
        return checkpoints

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("data_roots", mode="after")
    @classmethod
    def _absolute_roots(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        if relative := [str(root) for root in roots if not root.expanduser().is_absolute()]:
            raise ValueError(f"data_roots must be absolute paths, got {', '.join(relative)}")
        return tuple(root.expanduser() for root in roots)

    @property
    def admin_key_file(self) -> Path:
        return self.home / "admin.key"

    @property
    def code_allowed(self) -> bool:
        return self.on_loopback if self.allow_code is None else self.allow_code

    @property
    def on_loopback(self) -> bool:
        """Whether only people of this machine can reach the API."""
        if self.api_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.api_host).is_loopback
        except ValueError:  # a host name: it may resolve to anything
            return False
