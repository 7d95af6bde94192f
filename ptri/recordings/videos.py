"""Videos of synchronised cameras: found by name, checked against the camera file, read in step.

Frames are numbered from 0. OpenCV applies a rotation that a file's metadata asks for, as players
do; K has to be for the picture as it is shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.config import Config
from ptri.errors import UserError
from ptri.recordings.boxes import read_boxes
from ptri.recordings.intrinsics import CameraEntry, named_path, open_cameras

log = logging.getLogger(__name__)

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".m4v"}
RATE_TOLERANCE = 0.01  # relative difference of frame rates that is not a different rate


class Video(NamedTuple):
    """One camera's file, as its header describes it."""

    path: Path
    num_frames: int
    fps: float  # 0 = not stated


class VideoSet(NamedTuple):
    """Videos of V cameras and what to look at in them, checked before any weights are loaded."""

    cameras: list[CameraEntry]
    videos: list[Video]
    frames: list[int]  # T numbers, rising
    boxes: np.ndarray | None  # (T, V, 4) px, NaN = not in view; None: look for motion


def open_video_set(config: Config) -> VideoSet:
    """Opens the videos and boxes that a configuration names.

    Raises:
        UserError: a missing, unreadable or unfitting file, or too few views.
    """
    options, root = config.recording, Path(config.data.root)
    cameras = open_cameras(root, options)
    videos = open_videos(cameras, root, options.videos, options.last_frame)
    frames = frame_numbers(videos, options.first_frame, options.last_frame, options.every)
    boxes = read_boxes(config, [camera.name for camera in cameras], frames)
    return VideoSet(cameras, videos, frames, boxes)


def videos_by_camera(
    names: Sequence[str], root: str | Path, setting: str = "auto"
) -> dict[str, Path]:
    """One video per camera: of its name, else the first that starts with it; some may be missing.

    Args:
        setting: a folder, also relative to root; "auto": root/videos.
    """
    folder = Path(root) / "videos" if setting == "auto" else named_path(setting, Path(root))
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    fits = {name: [path for path in paths if path.stem.startswith(name)] for name in names}
    return {name: min(f, key=lambda path: path.stem != name) for name, f in fits.items() if f}


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
    names = [camera.name for camera in cameras]
    paths = videos_by_camera(names, root, setting)
    missing = [name for name in names if name not in paths]
    if missing:
        folder = Path(root) / "videos" if setting == "auto" else setting
        raise UserError(
            f"{folder}: no video of camera {', '.join(missing)}; expected {missing[0]}.mp4 (or "
            f"{', '.join(sorted(SUFFIXES - {'.mp4'}))}), or name the folder with recording.videos, "
            "or leave the camera out with recording.views"
        )
    for path in paths.values():
        sharing = [name for name in paths if paths[name] == path]
        if len(sharing) > 1:
            text = ", ".join(sharing)
            raise UserError(f"{path}: the only video for cameras {text}; name one each")
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
    shortest = min(videos, key=lambda video: video.num_frames)
    end = shortest.num_frames
    has = f"{shortest.path} has {end} frames (0 to {end - 1})"
    last = end - 1 if last is None else last
    if last >= end:
        raise UserError(f"recording.last_frame: {last}, but {has}")
    numbers = list(range(first, last + 1, every))
    if not numbers:
        raise UserError(f"recording.first_frame: no frame from {first} to {last}; {has}")
    return numbers


def read_in_step(videos: Sequence[Video], frames: Sequence[int]) -> Iterator[list[np.ndarray]]:
    """Yields one (H, W, 3) uint8 BGR image per video for each of some rising frame numbers.

    Raises:
        UserError: a frame cannot be read.
    """
    readers = [_read(video.path, frames) for video in videos]
    for number in frames:
        images = [next(reader) for reader in readers]
        for video, image in zip(videos, images):
            if image is None:
                raise UserError(
                    f"{video.path}: frame {number} of {video.num_frames} cannot be read; the file "
                    "is damaged or shorter than its header says: convert it again, or set "
                    f"recording.last_frame below {number}"
                )
        yield images


def read_frame(path: Path, number: int) -> np.ndarray | None:
    """A frame of a video, (H, W, 3) uint8 RGB; None where it cannot be read."""
    image = next(_read(path, [number]))
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read(path: Path, frames: Sequence[int]) -> Iterator[np.ndarray | None]:
    """Yields the images of rising frame numbers, BGR; None where one cannot be read."""
    capture, position = cv2.VideoCapture(str(path)), 0
    for number in frames:
        # Seeking by number is not exact in every container.
        there = all(capture.grab() for _ in range(number - position))
        yield capture.read()[1] if there else None
        position = number + 1


def _open(camera: CameraEntry, path: Path) -> Video:
    """A camera's video; its first frame is read and compared with the camera file."""
    capture = cv2.VideoCapture(str(path))
    there, image = capture.read()
    if not there:
        raise UserError(
            f"{path}: not a video that OpenCV can read; convert it, for instance to H.264 .mp4"
        )
    turn = round(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360
    height, width = image.shape[:2]
    if (width, height) != tuple(camera.size):
        turned = f" as shown, rotated by {turn} deg by its metadata" if turn else ""
        raise UserError(
            f"{path}: {width} x {height} px{turned}, but camera {camera.name!r} has size and K for "
            f"{camera.size[0]} x {camera.size[1]} px; calibrate at the video's own size, or, for a "
            "video that was only resized, scale K and size in the camera file"
        )
    if turn:
        log.warning("%s: rotated by %d deg by its metadata; K must be for it as shown", path, turn)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < 1:
        raise UserError(f"{path}: the file does not say how many frames it has; convert it to .mp4")
    return Video(path, count, capture.get(cv2.CAP_PROP_FPS))
