"""What detectors say of rendered clips, kept on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detector_errors.clips import Clips, Detected, detect

from ptri import config as configuration
from ptri.checkpoint import read_tensors, write_tensors
from ptri.config import Config
from ptri.data.labels import labels_path
from ptri.detectors.protocol import PoseDetector
from ptri.structures import Cameras, Keypoints

KIND = "ptri-detected"
ALL_SUBJECTS = list(range(1, 100))


class Window(NamedTuple):
    """Frames of a clip that a rig is solved from."""

    clip: int
    frames: slice


def windows(num_clips: int, length: int, num_frames: int, most: int = 3) -> list[Window]:
    """Runs of so many frames of every clip, spread evenly, that do not overlap; at most so many."""
    count = min(most, length // num_frames)
    first = np.linspace(0, length - num_frames, count).round().astype(int).tolist()
    return [Window(c, slice(f, f + num_frames)) for c in range(num_clips) for f in first]


def detected(root: Path, detector: PoseDetector, length: int, folder: Path) -> Detected:
    """A detector's keypoints of all people of a Human3.6M layout, in clips of some frames.

    Args:
        folder: keeps them for the next run.

    Raises:
        UserError: no such data; too few clips.
    """
    path = folder / f"detected_{root.name}_{detector.name}_{length}.pt"
    labels = labels_path(root)
    content = labels.read_bytes() if labels.is_file() else b""
    key = hashlib.sha256(detector.fingerprint().encode() + content).hexdigest()
    if path.is_file():
        kept = read_tensors(path, KIND)
        if kept["key"] == key:
            clips = {**kept["clips"], "cameras": Cameras(**kept["cameras"])}
            clips["keypoints"] = Keypoints(**kept["named"])
            own = Keypoints(**kept["keypoints"])
            return Detected(Clips(**clips), own, kept["truth"], kept["inside"])
    found = detect(detector, clips_config(root), length, least=1)
    clips = found.clips
    parts = {
        "clips": clips._asdict() | {"cameras": None, "keypoints": None},
        "cameras": clips.cameras._asdict(),
        "named": clips.keypoints._asdict(),
        "keypoints": found.keypoints._asdict(),
        "truth": found.truth,
        "inside": found.inside,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(path, KIND, {"key": key, **parts})
    return found


def clips_config(root: Path) -> Config:
    """Settings with everybody of a Human3.6M layout."""
    data = {"root": str(root), "test_subjects": ALL_SUBJECTS, "workers": 0}
    layers = {"run": {"name": "benchmark"}, "data": data}
    return configuration.from_dicts([("command line: ", layers)])
