"""Checkpoints in the form of the transformers library: where they are, and what their JSON files say. Without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.kinds.hub import is_folder
from workers.problems import first_line
from workers.sources.problems import BadDataError

FIELD = "task.model.checkpoint"


@dataclass(frozen=True)
class Pretrained:
    folder: Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]  # empty: the checkpoint has none

    @property
    def channels(self) -> int:
        return int(self.config.get("num_channels", 3))

    @property
    def mean_and_deviation(self) -> tuple[list[float], list[float]] | None:
        """Of each channel, of pixels in 0-1; None: the checkpoint does not say."""
        mean, deviation = self.preprocessor.get("image_mean"), self.preprocessor.get("image_std")
        usable = isinstance(mean, list) and isinstance(deviation, list) and len(mean) == len(deviation) == self.channels
        if not usable or not self.preprocessor.get("do_normalize", True):
            return None
        return [float(value) for value in mean], [float(value) for value in deviation]  # type: ignore[union-attr]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images that it takes; None: any."""
        names = (self.config.get("image_size"), self.preprocessor.get("crop_size"), self.preprocessor.get("size"))
        return next((found for found in map(_height_and_width, names) if found is not None), None)


def _height_and_width(said: Any) -> tuple[int, int] | None:
    if isinstance(said, int):
        return said, said
    if isinstance(said, list) and len(said) == 2:
        return int(said[0]), int(said[1])
    if isinstance(said, Mapping):
        edge = said.get("shortest_edge")
        height, width = said.get("height", edge), said.get("width", edge)
        return (int(height), int(width)) if height and width else None
    return None


def read_checkpoint(name: str, architecture: str) -> Pretrained:
    """``name``: a folder, or a repository, which is fetched. Raises BadDataError for what is no checkpoint of ``architecture``."""
    folder = Path(os.path.expanduser(name)) if is_folder(name) else _fetched(name)
    if not folder.is_dir():
        raise BadDataError(FIELD, f"there is no folder {folder}")
    config = _json(folder / "config.json")
    if config is None:
        raise BadDataError(FIELD, f"{folder} has no config.json; save_pretrained of the transformers library writes it")
    if config.get("model_type") != architecture:
        raise BadDataError(
            FIELD,
            f"{folder} is of architecture {config.get('model_type')!r}, not {architecture!r}; set model.architecture",
        )
    if not any(folder.glob("*.safetensors")):
        raise BadDataError(FIELD, f"{folder} has no weights in *.safetensors; pickled weights are not read")
    return Pretrained(folder, config, _json(folder / "preprocessor_config.json") or {})


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BadDataError(
            FIELD,
            f"{name} cannot be fetched from the Hugging Face hub: {first_line(error)}. A folder begins with / or ./",
        ) from error


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadDataError(FIELD, f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadDataError(FIELD, f"{path} must hold an object")
    return found
