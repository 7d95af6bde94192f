"""Which files are videos, and how large their pictures are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ptri.errors import UserError

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder, by name; none where there is no such folder."""
    paths = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)


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
