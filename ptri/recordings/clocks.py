"""Cameras that started at different moments: their keypoints brought in step.

Every camera's keypoints are read at the moments of the first camera's frames, between two frames by
interpolation. By how much each camera is late is given, found (`ptri.rig.sync`), or both: what is
given is applied first. Clocks that are found may drift.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ptri.config import Config, RecordingConfig
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import SEEN, rig_input
from ptri.rig.sync import LEAST_OVERLAP, find_lags, middle
from ptri.rig.tracks import keypoints_at
from ptri.structures import Keypoints

log = logging.getLogger(__name__)

MOST_OFFSET = 1e9  # frames
UNSURE = 1.0  # frames, standard deviation of a clock that is not used
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
        UserError: offsets of unknown cameras, that are no numbers, or longer than the recording.
    """
    recording, options = read(None), config.recording
    names = recording.names
    given = given_offsets(options, names)
    if options.sync == "none" and not given.any():
        return recording
    given = given - given[0]
    span = int(recording.frames[-1] - recording.frames[0]) + 1
    worst = int(np.abs(given).argmax())
    if abs(given[worst]) >= span:
        raise UserError(
            f"recording.offsets: {names[worst]} and {names[0]} are {abs(given[worst]):g} frames "
            f"apart, but the recording has {span} frames"
        )
    late, std, whole = given, np.zeros(len(names)), np.zeros(len(names))
    drift = None
    for _ in range(PASSES):
        dense, rows, spacing = _without_gaps(recording)
        nearest = spacing * np.rint(late / spacing)
        if (nearest != whole).any():
            recording, whole = read(nearest), nearest
            dense, rows, spacing = _without_gaps(recording)
        if options.sync == "none":
            break
        try:
            found, std, drift = _found(model, dense, config)
        except UserError as error:
            log.warning("%s; recording.offsets are used as they are", error)
            late, std, drift = given, np.full(len(names), np.nan), None
            break
        # What is not found, or hardly known, stays as given.
        std = np.where(spacing * std > UNSURE, np.nan, spacing * std)
        late = np.where(np.isnan(std), given, whole + spacing * found)
        drift = np.where(np.isnan(std)[:, None], 0.0, drift)
        if (np.abs(late - whole) <= spacing).all():
            break
    rate = np.zeros(len(names)) if drift is None else drift[:, 0]
    moved = _read(dense, (late - whole) / spacing, rate).part(list(range(len(names))), rows)
    return moved._replace(late=np.stack([late, std], 1), drift=drift)


def given_offsets(options: RecordingConfig, names: Sequence[str]) -> np.ndarray:
    """Frames (V,) by which what cameras show comes too late, as ``recording.offsets`` says.

    Raises:
        UserError: an unknown camera, or no number.
    """
    given = {str(name): value for name, value in options.offsets.items()}
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UserError(
            f"recording.offsets: no camera {', '.join(unknown)}; there are {', '.join(names)} "
            "(quote names made of digits; recording.views chooses cameras)"
        )
    for name, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < MOST_OFFSET:
            raise UserError(
                f"recording.offsets.{name}: expected frames, a number such as 7 or -2.5: "
                f"{value!r:.80}"
            )
    return np.array([float(given.get(name, 0.0)) for name in names])


def _found(
    model: PoseModel, recording: Recording, config: Config
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (V,) by which each view is still late in the middle, and standard deviations; 0 and NaN
    of a view that saw too little to tell. And the drift (V, 2), rows a row, with its deviation.

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
    drift = np.zeros((seen.shape[1], 2))
    drift[views] = torch.stack([lags.drift, lags.drift_std], 1).cpu().numpy()
    return frames, std, drift


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
        others=tuple(_without_gaps(other)[0] for other in recording.others),
    )
    return dense, rows, spacing


def _read(recording: Recording, late: np.ndarray, drift: np.ndarray) -> Recording:
    """The keypoints of every camera read so many rows (V,) later in the middle, which grow by
    ``drift`` (V,) a row."""
    moments = torch.arange(len(recording.frames), dtype=torch.float64)[:, None]
    given = late, drift
    late = torch.tensor(late) + torch.tensor(drift) * (moments - middle(len(recording.frames)))
    stated = recording.covariance is not None
    xy, confidence = torch.tensor(recording.xy), torch.tensor(recording.confidence)
    covariance = recording.covariance if stated else np.zeros((*xy.shape, 2))
    tracks = Keypoints(xy, torch.tensor(covariance), confidence)
    read = keypoints_at(tracks, moments + late)
    covariance = read.covariance.numpy() if stated else None
    return recording._replace(
        xy=read.xy.numpy(),
        confidence=read.confidence.numpy(),
        covariance=covariance,
        others=tuple(_read(other, *given) for other in recording.others),
    )
