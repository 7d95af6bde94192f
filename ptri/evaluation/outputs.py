"""The output folder of an evaluation or a recording: metrics, predictions, pictures."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptri.checkpoint import replacing
from ptri.config import Config
from ptri.errors import UserError

# What infer3d.py itself writes; --overwrite removes these and nothing else.
OWN_FILES = (
    "metrics.json", "details.json", "per_action.csv", "predictions.h5", "cameras.json",
    "cameras.toml", "config.yaml", "table.txt", "detections.h5",
)  # fmt: skip
PICTURES = "pictures"


def run_folder(config: Config) -> Path:
    """The folder of a run.

    Raises:
        UserError: the name is no plain folder name.
    """
    if not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", config.run.name):
        raise UserError(
            f"run.name: {config.run.name!r} is no folder name; use letters, digits and . _ + - /"
        )
    return Path(config.run.out) / config.run.name


def output_folder(config: Config, overwrite: bool) -> Path:
    """The folder ``<evaluate.out>/<run.name>``, checked; nothing is changed yet.

    Raises:
        UserError: it is there already and not empty, and ``overwrite`` is false.
    """
    run_folder(config)  # checks run.name
    folder = Path(config.evaluate.out) / config.run.name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another run.name")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"{folder}: the output folder exists; replace it with --overwrite, or choose another "
            "run.name or evaluate.out"
        )
    return folder


def clear(folder: Path) -> None:
    """Makes the folder and removes an older run's own files from it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        for part in folder.glob("predictions.part*.h5"):  # of a run of several that was stopped
            part.unlink()
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from None


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all; NaN becomes null, so that any reader takes it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(tree), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(file: h5py.File, arrays: dict[str, np.ndarray]) -> None:
    """Appends rows to data sets, which are made as needed. Float64 becomes float32."""
    packed = {"chunks": True, "shuffle": True, "compression": "gzip", "compression_opts": 1}
    for name, value in arrays.items():
        value = np.asarray(value)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        if name in file:
            start = len(file[name])
            file[name].resize(start + len(value), axis=0)
            file[name][start:] = value
        else:
            shape = (None, *value.shape[1:])
            file.create_dataset(name, data=value, maxshape=shape, **packed)
