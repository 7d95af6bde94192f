"""Which files are videos, whose they are, and what they say of the camera."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from ptri.errors import UserError

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder, by name; none where there is no such folder."""
    paths = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


def named_path(setting: str, root: Path) -> Path:
    """What a setting names: a path of its own or, where there is none, one in the root."""
    inside = root / setting
    return inside if inside.exists() and not Path(setting).exists() else Path(setting)


def videos_by_camera(
    names: Sequence[str], root: str | Path, setting: str = "auto"
) -> dict[str, Path]:
    """One video per camera: of its name, else the only one that begins with it.

    Some may be missing. A letter or digit more is another name: cam10.mp4 is none of cam1.

    Args:
        setting: a folder, also relative to root; "auto": root/videos.
    """
    folder = Path(root) / "videos" if setting == "auto" else named_path(setting, Path(root))
    paths = videos_in(folder)
    found = {}
    for name in names:
        begins = re.compile(re.escape(name) + r"(?![0-9A-Za-z])")
        fits = [path for path in paths if begins.match(path.stem)]
        fits = [path for path in fits if path.stem == name][:1] or fits
        if len(fits) == 1:
            found[name] = fits[0]
    return found


def first_picture(path: Path) -> tuple[cv2.VideoCapture, np.ndarray]:
    """An opened video and its first frame, rotated as players show it.

    Raises:
        UserError: there is no such frame.
    """
    capture = cv2.VideoCapture(str(path))
    there, image = capture.read()
    if not there:
        raise UserError(
            f"{path}: no frame that OpenCV can read; record it again, or convert it, for instance "
            "to H.264 .mp4"
        )
    return capture, image


class Filmed(NamedTuple):
    """What a video's metadata say of the camera that took it."""

    model: str | None  # such as "iPhone 13 Pro"
    equivalent: float | None  # mm, focal length before a picture 36 mm wide


# Keys of QuickTime's metadata, which Apple's phones write, and of Android's.
MODEL = ("com.apple.quicktime.model", "com.android.model")
EQUIVALENT = "com.apple.quicktime.camera.focal_length.35mm_equivalent"


def filmed_by(path: Path) -> Filmed:
    """What the metadata say; nothing where there are none, as in videos that were cut or sent."""
    try:
        with av.open(str(path)) as container:
            tags = dict(container.metadata)
            for stream in container.streams.video:
                tags |= stream.metadata
    except (av.FFmpegError, ValueError):
        return Filmed(None, None)
    model = next((tags[key].strip() for key in MODEL if key in tags), None)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)(?: ?mm)?\s*", tags.get(EQUIVALENT, ""))
    return Filmed(model or None, float(found[1]) if found else None)
