"""Videos of synchronised cameras: found by name, checked against the camera file, read in step.

Frames are numbered from 0, by the clock of the video with the lowest rate. The others show what
their timestamps say is nearest, so rates may differ and vary (phones), but all begin at the same
moment. OpenCV applies a rotation that a file's metadata asks for, as players do; K has to be for
the picture as it is shown.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.config import Config
from ptri.errors import UserError
from ptri.recordings.boxes import read_boxes
from ptri.recordings.clocks import given_offsets
from ptri.recordings.intrinsics import CameraEntry, open_cameras
from ptri.recordings.video_files import SUFFIXES, first_picture, videos_by_camera

log = logging.getLogger(__name__)

MOST_RATES = 4.0  # the highest frame rate over the lowest
MOST_APART = 0.1  # s, of frames where views are brought in step
# Frames that are enough for a rig: twice those that it is solved from by default, since the person
# is not seen by all cameras in each.
ENOUGH_FRAMES = 100
# A video may end so many frames before its header says, as those do that were cut without being
# encoded again.
LOST_AT_END = 3
SEEK = 4.0  # s; a picture that comes later is looked for from half of this before it


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
    fps: float  # that they count; 0 = not stated
    boxes: np.ndarray  # (T, V, 4) px as the user gave them, NaN = none


def open_video_set(config: Config) -> VideoSet:
    """Opens the videos and boxes that a configuration names.

    Raises:
        UserError: a missing, unreadable or unfitting file, or too few views.
    """
    options, root = config.recording, Path(config.data.root)
    cameras = open_cameras(root, options)
    together = options.sync == "none" and not options.offsets
    videos = open_videos(cameras, root, options.videos, options.last_frame, together)
    given_offsets(options, [camera.name for camera in cameras])  # fails before the long work
    chosen = options.first_frame, options.last_frame, options.every
    most = None if together else max(int(MOST_APART * clock(videos)), 1)
    frames = frame_numbers(videos, *chosen, most)
    boxes = read_boxes(config, [camera.name for camera in cameras], frames)
    return VideoSet(cameras, videos, frames, clock(videos), boxes)


def open_videos(
    cameras: Sequence[CameraEntry],
    root: str | Path,
    setting: str,
    last_frame: int | None = None,
    together: bool = True,
) -> list[Video]:
    """The cameras' videos, checked.

    Args:
        last_frame: the last one that will be read; with it, lengths may differ beyond it.
        together: they began at the same moment; else lengths may differ.

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
            f"{folder}: no video of camera {', '.join(missing)}, or several; expected "
            f"{missing[0]}.mp4 (or {', '.join(sorted(SUFFIXES - {'.mp4'}))}), or one alone that "
            f"begins so, as {missing[0]}_walk.mp4; or name the folder with recording.videos, or "
            "leave the camera out with recording.views"
        )
    for path in paths.values():
        sharing = [name for name in paths if paths[name] == path]
        if len(sharing) > 1:
            text = ", ".join(sharing)
            raise UserError(f"{path}: the only video for cameras {text}; name one each")
    videos = [_open(camera, paths[camera.name]) for camera in cameras]
    rates = [video.fps for video in videos if video.fps > 0]
    if rates and (max(rates) > MOST_RATES * min(rates) or len(rates) < len(videos)):
        text = ", ".join(f"{video.path.name} {video.fps:g}" for video in videos)
        raise UserError(
            f"{root}: frame rates differ too much ({text} per second); at most {MOST_RATES:g} "
            "times the lowest: convert them to one rate"
        )
    lengths = [_length(video, clock(videos)) for video in videos]
    short = last_frame is None or last_frame >= min(lengths)
    if together and short and len(set(lengths)) > 1:
        text = ", ".join(f"{video.path.name} {n}" for video, n in zip(videos, lengths))
        raise UserError(
            f"{root}: videos of different lengths ({text} frames); where they "
            f"start together, set recording.last_frame={min(lengths) - 1}; where they do not, set "
            "recording.sync=auto, or cut them to the same moments"
        )
    return videos


def clock(videos: Sequence[Video]) -> float:
    """Frames per second by which frames are numbered; 0 = not stated."""
    return min(video.fps for video in videos)


def _length(video: Video, fps: float) -> int:
    """Frames of a video, counted at another rate."""
    return round(video.num_frames * fps / video.fps) if fps else video.num_frames


def frame_numbers(
    videos: Sequence[Video],
    first: int,
    last: int | None,
    every: int | None,
    most: int | None = None,
) -> list[int]:
    """The frames to read.

    Args:
        every: one of so many; None: so that `ENOUGH_FRAMES` or a few more are read.
        most: that ``every`` may be; None: anything.

    Raises:
        UserError: there are none, the last one is not in every video, or too few are asked for.
    """
    shortest = min(videos, key=lambda video: _length(video, clock(videos)))
    end = _length(shortest, clock(videos))
    has = f"{shortest.path} has {end} frames (0 to {end - 1})"
    last = end - 1 if last is None else last
    if last >= end:
        raise UserError(f"recording.last_frame: {last}, but {has}")
    if every is None:
        every = max(1, (last + 1 - first) // ENOUGH_FRAMES)
        every = every if most is None else min(every, most)
    if most is not None and every > most:
        raise UserError(
            f"recording.every: {every}, but clocks are told from frames at most {MOST_APART:g} s "
            f"apart; set it to {most} or less, and choose a part with recording.last_frame"
        )
    numbers = list(range(first, last + 1, every))
    if not numbers:
        raise UserError(f"recording.first_frame: no frame from {first} to {last}; {has}")
    return numbers


def read_in_step(
    videos: Sequence[Video], frames: Sequence[int]
) -> Iterator[list[np.ndarray | None]]:
    """Yields one (H, W, 3) uint8 BGR image per video for each of some rising frame numbers.

    None stands for an image where a video has none near that moment. Videos that end `LOST_AT_END`
    frames early end the whole.

    Raises:
        UserError: a video ends before.
    """
    readers = [_read(video.path, frames, clock(videos)) for video in videos]
    for number in frames:
        try:
            yield [next(reader) for reader in readers]
        except EOFError as error:
            video = next(video for video in videos if str(video.path) == str(error))
            if frames[0] < number and number >= frames[-1] + 1 - LOST_AT_END:
                log.warning("%s: ends before frame %d", video.path, number)
                return
            raise UserError(
                f"{video.path}: frame {number} of {video.num_frames} cannot be read; the file "
                "is damaged or shorter than its header says: convert it again, or set "
                f"recording.last_frame below {number}"
            ) from None


def read_frame(path: Path, number: int, fps: float = 0.0) -> np.ndarray | None:
    """A frame of a video, (H, W, 3) uint8 RGB; None where it cannot be read.

    Args:
        fps: that the number counts; 0: it is the video's own.
    """
    try:
        image = next(_read(path, [number], fps))
    except EOFError:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read(path: Path, frames: Sequence[int], fps: float) -> Iterator[np.ndarray | None]:
    """Yields the images of rising frame numbers, BGR; None where there is none near the moment.

    Raises:
        EOFError: the file's name; it ends before.
    """
    capture = cv2.VideoCapture(str(path))
    own = capture.get(cv2.CAP_PROP_FPS)
    if not fps or not own:  # without a clock, the picture of the same number
        fps = own = 1.0
        stamps: Iterator[float] = itertools.count()
    else:
        stamps = _timestamps(capture, own, frames[0] / fps)
    time = -np.inf  # s, of the picture at hand
    for number in frames:
        moment = number / fps
        while time < moment - 0.5 / own:
            if not capture.grab():
                raise EOFError(path)
            time = next(stamps)
        near = time < moment + 0.5 / fps
        yield capture.retrieve()[1] if near else None


def _timestamps(capture: cv2.VideoCapture, fps: float, first: float) -> Iterator[float]:
    """When each picture that is grabbed was taken, s after the first one of the video.

    Args:
        first: pictures before this moment may be left out.
    """
    stamp = begin = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    if first > SEEK:
        # Seeking is not exact in every container, but the stamp tells where it has led to.
        capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (first - SEEK / 2))
        yield begin - begin
        stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
    yield stamp - begin
    while True:
        before, stamp = stamp, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if stamp <= before:  # not every container has them
            stamp = before + 1 / fps
        yield stamp - begin


def _open(camera: CameraEntry, path: Path) -> Video:
    """A camera's video; its first frame is read and compared with the camera file."""
    capture, image = first_picture(path)
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
