"""Other methods on the same crops: writes the crops, reads their keypoints.

A peer needs an environment of its own (MediaPipe: numpy below 2), so it sees files only: PNG images
and ``crops.json``, and answers with a JSON file (scripts/peer_mediapipe.py):

    {"method": "...", "size": 256, "crop_scale": 1.0, "joints": ["left_shoulder", ...],
     "persons": {"000_...": [[x, y, visibility], ...] or null where nobody was found}}
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmark.photos.persons import Crops, Guess
from ptri.data.annotations import JOINTS, read_json
from ptri.errors import UserError
from ptri.evaluation import draw


def write_crops(crops: Crops, scale: float, folder: Path) -> None:
    """PNG images and ``crops.json`` with their names; no truth."""
    for name, image in zip(crops.names, crops.images):
        draw.save(image, folder / f"{name}.png")
    content = {"size": crops.size, "crop_scale": scale, "persons": crops.names}
    (folder / "crops.json").write_text(json.dumps(content, indent=1))


def read_peer(path: str | Path, crops: Crops, scale: float) -> tuple[str, Guess]:
    """A peer's name and keypoints, moved to the crops' size.

    Raises:
        UserError: unreadable, of other crops, or without the joints that are scored.
    """
    content = read_json(path)
    try:
        size, joints = float(content["size"]), list(content["joints"])
        method, persons = str(content["method"]), dict(content["persons"])
        other = float(content["crop_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no peer's keypoints ({type(error).__name__} {error}); expected what "
            "scripts/peer_mediapipe.py writes"
        ) from None
    if abs(other - scale) > 1e-9:
        raise UserError(
            f"{path}: made from crops of {other:g} times the box, these are {scale:g}; write the "
            "crops again with --write-crops"
        )
    missing = [name for name in JOINTS if name not in joints]
    lost = [name for name in crops.names if name not in persons]
    if missing or lost:
        raise UserError(f"{path}: lacks {', '.join((missing or lost)[:3])}; write the crops again")
    rows = [joints.index(name) for name in JOINTS]
    xy = np.full((len(crops.names), len(JOINTS), 2), np.nan)
    for index, name in enumerate(crops.names):
        if persons[name] is not None:
            xy[index] = np.array(persons[name], np.float64)[rows, :2]
    return method, Guess((xy + 0.5) * crops.size / size - 0.5)
