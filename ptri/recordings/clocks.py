"""Cameras that started at different moments: their keypoints brought in step.

Every camera's keypoints are read at the moments of the first camera's frames, between two frames by
interpolation. By how much each camera is late is given, found (`ptri.rig.sync`), or both: what is
given is applied first.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ptri.config import Config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import rig_input
from ptri.rig.sync import find_lags
from ptri.rig.tracks import keypoints_at
from ptri.structures import Keypoints

MOST_ROWS = 200_000  # frames of a recording with gaps, the gaps counted


def bring_in_step(model: PoseModel, recording: Recording, config: Config) -> Recording:
    """The recording with all cameras at the first one's moments, and by how much each was late.

    Raises:
        UserError: offsets of unknown cameras or that are no numbers; nothing that tells the clocks.
    """
    options, names = config.recording, recording.names
    given = np.array([_offset(options.offsets, name) for name in names])
    unknown = sorted(set(map(str, options.offsets)) - set(names))
    if unknown:
        raise UserError(
            f"recording.offsets: no camera {', '.join(unknown)}; there are {', '.join(names)}"
        )
    if options.sync == "none" and not given.any():
        return recording
    dense, rows, spacing = _without_gaps(recording)
    late, std = given - given[0], np.zeros(len(names))
    moved = _read(dense, late / spacing)
    if options.sync == "auto":
        device = next(model.parameters()).device
        keypoints = rig_input(moved, options.noise, device)
        lags = find_lags(model, keypoints, config.posterior, config.run.seed)
        late = late + spacing * lags.frames.cpu().numpy()
        std = spacing * lags.std.cpu().numpy()
        moved = _read(dense, late / spacing)
    moved = moved.part(list(range(len(names))), rows)
    return moved._replace(late=np.stack([late, std], 1))


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
