"""Detections in a file, so that a recording can be solved again without detecting again.

``detections.h5`` holds the keypoints, and what they depend on: the videos, the cameras' intrinsics,
the frames, the boxes, the 2D weights and its settings. Reading it compares all of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from torch import nn

from ptri.config import Config
from ptri.errors import UserError
from ptri.evaluation.outputs import PredictionFile
from ptri.recordings.detect import Detections
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.video_files import Video, fingerprint
from ptri.skeleton import H36M17

NAME = "detections.h5"
FORMAT = "ptri detections 1"  # raised when detecting changes
_ARRAYS = ("frames", "xy", "covariance", "confidence", "crops")


def sources(
    model: nn.Module,
    videos: Sequence[Video],
    cameras: Sequence[CameraEntry],
    numbers: Sequence[int],
    boxes: np.ndarray | None,
    config: Config,
) -> dict[str, str]:
    """What detections depend on, in words that an error can name; plain strings."""
    options = config.recording
    return {
        "cameras": ", ".join(camera.name for camera in cameras),
        "videos": ", ".join(fingerprint(video.path) for video in videos),
        "intrinsics": _digest(
            *[np.concatenate([c.size, c.K.ravel(), c.dist]).astype(np.float64) for c in cameras]
        ),
        "frames": f"{numbers[0]} to {numbers[-1]}, every {options.every}",
        "boxes": "motion" if boxes is None else _digest(boxes),
        "2D weights": _weights(model),
        "settings": json.dumps(
            {
                "data.image_size": config.data.image_size,
                "data.crop_scale": config.data.crop_scale,
                "model.heatmap_window": config.model.heatmap_window,
                "model.flip_test": config.model.flip_test,
                "recording.max_roll_deg": options.max_roll_deg,
            }
        ),
    }


def write(path: Path, detections: Detections, depends_on: dict[str, str]) -> None:
    """Writes detections, replacing an older file."""
    attributes = {"format": FORMAT, "units": "undistorted px", "seconds": detections.seconds}
    attributes |= {f"made from {name}": value for name, value in depends_on.items()}
    with PredictionFile(path, attributes) as file:
        file.names("joint_names", list(H36M17.joints))
        file.append({name: getattr(detections, name) for name in _ARRAYS})


def read(path: str | Path, depends_on: dict[str, str]) -> Detections:
    """Reads detections that were made from the same things.

    Raises:
        UserError: no such file, not such a file, or stale: the message says what has changed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / NAME
    if not path.is_file():
        raise UserError(f"recording.reuse: {path}: no such file; give the {NAME} of an earlier run")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            arrays = [file[name][:].astype(np.float64) for name in _ARRAYS]
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"recording.reuse: {path}: not a {NAME}: {reason}") from None
    if attributes.get("format") != FORMAT:
        raise UserError(
            f"recording.reuse: {path}: format {attributes.get('format')!r}, expected {FORMAT!r}; "
            "detect again without recording.reuse"
        )
    changed = [
        name for name, value in depends_on.items() if attributes.get(f"made from {name}") != value
    ]
    if changed:
        old, new = attributes.get(f"made from {changed[0]}"), depends_on[changed[0]]
        raise UserError(
            f"recording.reuse: {path} is stale: other {', '.join(changed)} ({changed[0]}: "
            f"{str(old)[:80]!r}, now {new[:80]!r}); detect again without recording.reuse"
        )
    return Detections(arrays[0].astype(np.int64), *arrays[1:], float(attributes["seconds"]))


def _weights(model: nn.Module) -> str:
    network = getattr(model, "network2d", None) or model
    state = network.state_dict()
    return _digest(*(value.detach().cpu().numpy() for value in state.values()))


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
