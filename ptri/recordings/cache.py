"""Detections in a file, so that a recording can be solved again without detecting again.

``detections.h5`` holds the keypoints of everybody, so that another person can be followed too, and
what they are made from: the videos, the cameras' intrinsics, the frames, the boxes, the 2D weights
and the settings. Reading it compares all of that.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np

from ptri.config import Config
from ptri.detectors.people import PersonDetector
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.evaluation.outputs import append
from ptri.recordings.candidates import Candidates
from ptri.recordings.detect import detect
from ptri.recordings.detections import Detections
from ptri.recordings.videos import VideoSet
from ptri.skeleton import Skeleton

NAME = "detections.h5"
FORMAT = "ptri detections 4"  # raised when detecting changes
_PIECE = 1 << 20  # bytes read at the start, the middle and the end to know a video again


def detect_or_reuse(
    detector: PoseDetector, finder: PersonDetector, video_set: VideoSet, config: Config
) -> Detections:
    """The detections of videos: those of ``recording.reuse`` where that is set, else new ones.

    Raises:
        UserError: detections to reuse are missing or stale.
    """
    made_from = ingredients(detector, finder, video_set)
    if config.recording.reuse is not None:
        return read(config.recording.reuse, made_from, detector.skeleton)
    return detect(detector, finder, video_set)._replace(made_from=made_from)


def ingredients(
    detector: PoseDetector, finder: PersonDetector, video_set: VideoSet
) -> dict[str, str]:
    """What detections are made from, by names that an error can tell; plain strings."""
    cameras, videos, frames, _, boxes = video_set
    settings = {
        "image_size": detector.image_size,
        "crop_scale": detector.crop_scale,
    }
    return {
        "cameras": ", ".join(camera.name for camera in cameras),
        "videos": ", ".join(fingerprint(video.path) for video in videos),
        "intrinsics": _digest(
            *[np.concatenate([c.size, c.K.ravel(), c.dist]).tobytes() for c in cameras]
        ),
        "frames": f"{len(frames)} from {frames[0]} to {frames[-1]}",
        "boxes": _digest(boxes.tobytes()),
        "detector": f"{detector.name}, people {finder.name}",
        "2D weights": f"{detector.fingerprint()}, {finder.fingerprint()}",
        "settings": json.dumps(settings),
    }


def write(path: Path, detections: Detections) -> None:
    """Writes detections, replacing an older file."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, units="undistorted px", seconds=detections.seconds)
        file.attrs["fps"] = detections.fps
        file.attrs.update({f"made from {name}": v for name, v in detections.made_from.items()})
        file["joint_names"] = list(detections.skeleton.joints)
        append(file, {"frames": detections.frames, **detections.people._asdict()})


def read(path: str | Path, made_from: dict[str, str], skeleton: Skeleton) -> Detections:
    """Reads detections, a file or the folder that holds it.

    Args:
        made_from: what they have to be made from. skeleton: of their joints.

    Raises:
        UserError: no such file, not such a file, or stale: the message says what has changed.
    """
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"recording.reuse: {path}: no such file; give the {NAME} of an earlier run")
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            frames, *people = [file[name][:] for name in ("frames", *Candidates._fields)]
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"recording.reuse: {path}: not a {NAME}: {reason}") from None
    before = {name: attributes.get(f"made from {name}") for name in made_from}
    before, made = {"format": attributes.get("format")} | before, {"format": FORMAT} | made_from
    changed = [name for name in made if before[name] != made[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"recording.reuse: {path} is stale: other {', '.join(changed)} ({name}: "
            f"{str(before[name])[:80]!r}, now {made[name][:80]!r}); detect again without "
            "recording.reuse"
        )
    floats = [part.astype(np.float64) for part in people[2:-1]]  # stored as float32
    people = Candidates(*people[:2], *floats, people[-1])
    numbers = (float(attributes[name]) for name in ("fps", "seconds"))
    fps, seconds = numbers
    return Detections(frames, fps, skeleton, people, seconds, made_from)


def fingerprint(path: Path) -> str:
    """Tells files apart by their size and one MB each of start, middle and end."""
    size = path.stat().st_size
    pieces = [str(size).encode()]
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - _PIECE)):
            file.seek(start)
            pieces.append(file.read(_PIECE))
    return _digest(*pieces)


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
