"""Cameras that started at different moments: their keypoints brought in step.

Every camera's keypoints are read at the moments of the first camera's frames, between two frames by
interpolation. By how much each camera is late is given, found (`ptri.rig.sync`), or both: what is
given is applied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from ptri.config import Config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import SEEN, rig_input
from ptri.rig.sync import LEAST_OVERLAP, find_lags
from ptri.rig.tracks import keypoints_at
from ptri.structures import Keypoints

PASSES = 3  # of following the person and finding the clocks
MOST_ROWS = 50_000  # frames of a recording with gaps, the gaps counted


def bring_in_step(
    model: PoseModel, read: Callable[[np.ndarray | None], Recording], config: Config
) -> Recording:
    """The recording with all cameras at the first one's moments, and by how much each was late.

    Args:
        read: makes the recording of the person who is followed, with cameras late by whole frames
            (V,). Who is the same in two views is told by their rays, so that is done again with the
            clocks found.

    Raises:
        UserError: offsets of unknown cameras or that are no numbers; nothing that tells the clocks.
    """
    recording, options = read(None), config.recording
    names = recording.names
    given = np.array([_offset(options.offsets, name) for name in names])
    unknown = sorted(set(map(str, options.offsets)) - set(names))
    if unknown:
        raise UserError(
            f"recording.offsets: no camera {', '.join(unknown)}; there are {', '.join(names)}"
        )
    if options.sync == "none" and not given.any():
        return recording
    late, std, whole = given - given[0], np.zeros(len(names)), np.zeros(len(names))
    for _ in range(PASSES):
        dense, rows, spacing = _without_gaps(recording)
        nearest = spacing * np.rint(late / spacing)
        if (nearest != whole).any():
            recording, whole = read(nearest), nearest
            dense, rows, spacing = _without_gaps(recording)
        if options.sync == "none":
            break
        moved = _read(dense, (late - whole) / spacing)
        found, std = _found(model, moved, config)
        late, std = late + spacing * found, spacing * std
        if (np.abs(late - whole) <= spacing).all():
            break
    moved = _read(dense, (late - whole) / spacing).part(list(range(len(names))), rows)
    return moved._replace(late=np.stack([late, std], 1))


def _found(model: PoseModel, recording: Recording, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Frames (V,) by which each view is still late, and standard deviations; 0 and NaN of a view
    that saw too little to tell.

    Raises:
        UserError: of all views but one.
    """
    seen = np.isfinite(recording.xy).all(-1).sum(-1) >= SEEN  # (T, V)
    views = np.flatnonzero(seen.sum(0) >= LEAST_OVERLAP).tolist()
    if len(views) < 2:
        counts = zip(recording.names, seen.sum(0))
        text = ", ".join(f"{name} in {count}" for name, count in counts)
        raise UserError(
            f"recording.sync: two cameras that see the person in {LEAST_OVERLAP} frames or more "
            f"are needed to find their clocks (seen: {text})"
        )
    device = next(model.parameters()).device
    keypoints = rig_input(recording.part(views), config.recording.noise, device)
    names = [recording.names[v] for v in views]
    lags = find_lags(model, keypoints, config.posterior, config.run.seed, names)
    frames, std = np.zeros(seen.shape[1]), np.full(seen.shape[1], np.nan)
    frames[views], std[views] = lags.frames.cpu().numpy(), lags.std.cpu().numpy()
    return frames, std


def _offset(offsets: dict, name: str) -> float:
    value = {str(key): value for key, value in offsets.items()}.get(name, 0.0)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise UserError(
            f"recording.offsets.{name}: expected frames, a number such as 7 or -2.5: {value!r:.80}"
        )
    return float(value)


def _without_gaps(recording: Recording) -> tuple[Recording, np.ndarray, int]:
    """The recording with a row for every moment, where its own rows are, and frames a row."""
    steps = np.diff(recording.frames)
    spacing = int(np.gcd.reduce(steps)) if len(steps) else 1
    rows = (recording.frames - recording.frames[0]) // spacing
    count = int(rows[-1]) + 1
    if count > MOST_ROWS:
        raise UserError(
            f"recording: frames {recording.frames[0]} to {recording.frames[-1]}, of which "
            f"{len(rows)} are there; clocks are told over at most {MOST_ROWS}: choose a part with "
            "recording.first_frame and recording.last_frame"
        )

    def spread(value: np.ndarray | None, empty: float) -> np.ndarray | None:
        if value is None:
            return None
        result = np.full((count, *value.shape[1:]), empty, value.dtype)
        result[rows] = value
        return result

    dense = recording._replace(
        frames=recording.frames[0] + spacing * np.arange(count),
        xy=spread(recording.xy, np.nan),
        confidence=spread(recording.confidence, 0.0),
        covariance=spread(recording.covariance, np.nan),
    )
    return dense, rows, spacing


def _read(recording: Recording, late: np.ndarray) -> Recording:
    """The keypoints of every camera read so many rows (V,) later."""
    moments = torch.arange(len(recording.frames), dtype=torch.float64)[:, None]
    stated = recording.covariance is not None
    xy, confidence = torch.tensor(recording.xy), torch.tensor(recording.confidence)
    covariance = recording.covariance if stated else np.zeros((*xy.shape, 2))
    tracks = Keypoints(xy, torch.tensor(covariance), confidence)
    read = keypoints_at(tracks, moments + torch.tensor(late))
    covariance = read.covariance.numpy() if stated else None
    return recording._replace(
        xy=read.xy.numpy(), confidence=read.confidence.numpy(), covariance=covariance
    )
