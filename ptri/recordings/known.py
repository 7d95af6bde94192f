"""What a recording's cameras are known by before: ``recording.poses``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from ptri.config_sections import RecordingConfig
from ptri.errors import UserError
from ptri.recordings.intrinsics import CameraEntry, read_cameras
from ptri.recordings.keypoint_files import Recording
from ptri.rig.known import KnownCameras


def known_cameras(recording: Recording, options: RecordingConfig) -> KnownCameras | None:
    """The poses of the cameras by name, as ``recording.poses`` takes them; None: unknown ones.

    Raises:
        UserError: no poses where some are asked for.
    """
    if options.poses == "compare":
        return None
    source, covariance, entries = "the camera file", None, recording.cameras
    if options.poses_from is not None:
        source = options.poses_from
        entries = read_cameras(source)
        covariance = _covariance(Path(source), [entry.name for entry in entries])
    by_name = {entry.name: entry for entry in entries if entry.R is not None}
    found = [by_name.get(name) for name in recording.names]
    if sum(entry is not None for entry in found) < 2:
        raise UserError(
            f"recording.poses: {options.poses}, but {source} holds R and t of fewer than two of "
            f"{', '.join(recording.names)}; name another one (recording.poses_from)"
        )
    if options.poses == "exact" and None in found:
        missing = [name for name, entry in zip(recording.names, found) if entry is None]
        raise UserError(
            f"recording.poses: exact, but {source} holds no R and t of {', '.join(missing)}; leave "
            "them out (recording.views), or set recording.poses=roughly"
        )
    R, t = (np.stack([_part(entry, part) for entry in found]) for part in "Rt")
    if options.poses == "exact":
        return KnownCameras(R, t, 0.0, 0.0)
    if covariance is not None and [entry.name for entry in entries] == list(recording.names):
        return KnownCameras(R, t, covariance=covariance)
    std = options.poses_std
    if len(std) != 2 or not all(0 <= value < math.inf for value in std):
        raise UserError(f"recording.poses_std: {std}; expected two numbers >= 0, deg and mm")
    return KnownCameras(R, t, *std)


def moved_text(names: tuple[str, ...], moved: tuple[float, ...]) -> str:
    """Which cameras have moved since they were known."""
    words = [
        f"{name} not known" if math.isnan(chance) else f"{name} {100 * chance:.1f} %"
        for name, chance in zip(names, moved)
    ]
    gone = [name for name, chance in zip(names, moved) if chance > 0.5]
    found = f"{', '.join(gone)} found anew" if gone else "all where they were"
    return f"chance that a camera has moved since its pose was known: {', '.join(words)}; {found}"


def _part(entry: CameraEntry | None, part: str) -> np.ndarray:
    if entry is None:
        return np.full((3, 3) if part == "R" else 3, np.nan)
    return getattr(entry, part)


def _covariance(path: Path, names: list[str]) -> np.ndarray | None:
    """That of the poses in a cameras.json of ours; None: another file."""
    if path.suffix != ".json":
        return None
    covariance = json.loads(path.read_text()).get("covariance")
    if covariance is None:
        return None
    try:
        covariance = np.asarray(covariance, float)
        if covariance.shape != (6 * (len(names) - 1),) * 2:
            raise ValueError(f"shape {covariance.shape}")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: covariance: {error}; expected a matrix of {6 * (len(names) - 1)} rows, for "
            "the rotation vectors (rad) and translations (mm) of all cameras but the first"
        ) from None
    return covariance
