"""Videos of synchronised cameras: found by name, checked against the camera file, read in step.

Frames are numbered from 0. OpenCV applies a rotation that a file's metadata asks for, as players
do; K has to be for the picture as it is shown.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.errors import UserError
from ptri.recordings.intrinsics import CameraEntry

log = logging.getLogger(__name__)

KINDS = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}
RATE_TOLERANCE = 0.01  # relative difference of frame rates that is not a different rate
_PIECE = 1 << 20  # bytes read at the start, the middle and the end to know a file again


class Video(NamedTuple):
    """One camera's file, as its header describes it."""

    name: str  # of the camera
    path: Path
    num_frames: int
    fps: float  # 0 = not stated


def videos_by_camera(
    names: Sequence[str], root: str | Path, setting: str = "auto"
) -> dict[str, Path]:
    """One video per camera: of its name, else the first that starts with it; some may be missing.

    Args:
        setting: a folder, also relative to root; "auto": root/videos.
    """
    root = Path(root)
    folder = root / "videos" if setting == "auto" else Path(setting)
    if not folder.is_dir():
        folder = root / setting
    if not folder.is_dir():
        return {}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    result = {}
    for name in names:
        fits = [path for path in found if path.stem == name] or [
            path for path in found if path.stem.startswith(name)
        ]
        if fits:
            result[name] = fits[0]
    return result


def open_videos(
    cameras: Sequence[CameraEntry], root: str | Path, setting: str, last_frame: int | None = None
) -> list[Video]:
    """The cameras' videos, checked.

    Args:
        last_frame: the last one that will be read; with it, lengths may differ beyond it.

    Raises:
        UserError: a missing or unreadable video, another picture size than K's, different frame
            rates or lengths. The message names the files.
    """
    paths = videos_by_camera([camera.name for camera in cameras], root, setting)
    missing = [camera.name for camera in cameras if camera.name not in paths]
    if missing:
        folder = Path(root) / "videos" if setting == "auto" else setting
        raise UserError(
            f"{folder}: no video of camera {', '.join(missing)}; expected {missing[0]}.mp4 (or "
            f"{', '.join(sorted(KINDS - {'.mp4'}))}), or name the folder with recording.videos, or "
            "leave the camera out with recording.views"
        )
    for path in paths.values():
        same = [name for name, its in paths.items() if its == path]
        if len(same) > 1:
            raise UserError(f"{path}: the only video for cameras {', '.join(same)}; name one each")
    videos = [_open(camera, paths[camera.name]) for camera in cameras]
    rates = [video.fps for video in videos if video.fps > 0]
    if rates and max(rates) > (1 + RATE_TOLERANCE) * min(rates):
        text = ", ".join(f"{video.path.name} {video.fps:g}" for video in videos)
        raise UserError(f"{root}: frame rates differ ({text} per second); cameras must run in step")
    lengths = {video.num_frames for video in videos}
    if len(lengths) > 1 and (last_frame is None or last_frame >= min(lengths)):
        text = ", ".join(f"{video.path.name} {video.num_frames}" for video in videos)
        raise UserError(
            f"{root}: videos of different lengths ({text} frames); cut them to the same moments, "
            f"or, where they start together, set recording.last_frame={min(lengths) - 1}"
        )
    return videos


def frame_numbers(videos: Sequence[Video], first: int, last: int | None, every: int) -> list[int]:
    """The frames to read.

    Raises:
        UserError: there are none, or the last one is not in every video.
    """
    count = min(video.num_frames for video in videos)
    shortest = min(videos, key=lambda video: video.num_frames).path
    if last is not None and last >= count:
        raise UserError(
            f"recording.last_frame: {last}, but {shortest} has {count} frames (0 to {count - 1})"
        )
    numbers = list(range(first, count if last is None else last + 1, every))
    if not numbers:
        raise UserError(
            f"recording.first_frame: no frame from {first} to "
            f"{count - 1 if last is None else last}; {shortest} has {count} (0 to {count - 1})"
        )
    return numbers


def read_in_step(
    videos: Sequence[Video], numbers: Sequence[int]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yields (number, one (H, W, 3) uint8 BGR image per video) for rising frame numbers.

    Raises:
        UserError: a frame cannot be read.
    """
    captures = [cv2.VideoCapture(str(video.path)) for video in videos]
    try:
        position = 0
        for number in numbers:
            images = []
            for video, capture in zip(videos, captures):
                # Seeking by number is not exact in every container.
                good = all(capture.grab() for _ in range(number - position))
                good, image = capture.read() if good else (False, None)
                if not good:
                    raise UserError(
                        f"{video.path}: frame {number} of {video.num_frames} cannot be read; the "
                        "file is damaged or shorter than its header says: convert it again, or set "
                        f"recording.last_frame below {number}"
                    )
                images.append(image)
            position = number + 1
            yield number, images
    finally:
        for capture in captures:
            capture.release()


def read_frame(path: Path, number: int) -> np.ndarray | None:
    """Frame ``number`` (from 0) of a video, RGB; None where it cannot be read."""
    video = cv2.VideoCapture(str(path))
    try:
        for _ in range(number):  # seeking by number is not exact in every container
            if not video.grab():
                return None
        good, image = video.read()
    finally:
        video.release()
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if good else None


def fingerprint(path: str | Path) -> str:
    """Tells files apart by their size and one MB each of start, middle and end."""
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for start in (0, size // 2, max(0, size - _PIECE)):
            file.seek(start)
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _open(camera: CameraEntry, path: Path) -> Video:
    capture = cv2.VideoCapture(str(path))
    try:
        good, image = capture.read()
        if not good:
            raise UserError(
                f"{path}: not a video that OpenCV can read; convert it, for instance to H.264 .mp4"
            )
        turn = round(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    shown = (image.shape[1], image.shape[0])
    if shown != tuple(camera.size):
        stored = shown[::-1] if turn in (90, 270) else shown
        text = f"{path}: {shown[0]} x {shown[1]} px"
        if turn and stored == tuple(camera.size):
            text += f" as shown, rotated by {turn} deg by its metadata, but"
        else:
            text += ", but"
        raise UserError(
            f"{text} camera {camera.name!r} has size and K for {camera.size[0]} x "
            f"{camera.size[1]} px; calibrate at the video's own size, or, for a video that was "
            "only resized, scale K and size in the camera file"
        )
    if turn:
        log.warning("%s: rotated by %d deg by its metadata; K must be for it as shown", path, turn)
    if count < 1:
        raise UserError(f"{path}: the file does not say how many frames it has; convert it to .mp4")
    return Video(camera.name, path, count, fps)
