"""A recording from videos: reads and checks them, detects (or reuses detections), and says how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from ptri.config import Config
from ptri.errors import UserError
from ptri.recordings import cache as recording_cache
from ptri.recordings.boxes import keypoint_boxes, read_box_files
from ptri.recordings.detect import Detections, detect_videos
from ptri.recordings.intrinsics import CameraEntry, find_file, read_cameras
from ptri.recordings.keypoint_files import (
    Recording,
    read_recording,
    recording_of,
    select_views,
)
from ptri.recordings.video_files import Video, frame_numbers, open_videos
from ptri.skeleton import H36M17


class Source(NamedTuple):
    """Videos and what to read of them, checked before any weights are loaded."""

    cameras: list[CameraEntry]
    videos: list[Video]
    numbers: list[int]  # frames
    boxes: np.ndarray | None  # (T, V, 4) px, NaN = not in view; None: motion
    boxes_from: str  # in words


class Detected(NamedTuple):
    """A recording with what it was detected from."""

    recording: Recording
    detections: Detections
    depends_on: dict[str, str]  # see `recording_cache.sources`
    text: str  # a line for the report


def open_source(config: Config) -> Source:
    """Opens the videos and boxes that a configuration names.

    Raises:
        UserError: a missing, unreadable or unfitting file, or too few views.
    """
    options, root = config.recording, Path(config.data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    camera_file = find_file(root, options.intrinsics)
    cameras = select_views(read_cameras(camera_file), options.views)
    if len(cameras) < 2:
        raise UserError(
            f"{camera_file}: {len(cameras)} view chosen ({', '.join(c.name for c in cameras)}); "
            "at least two cameras are needed"
        )
    videos = open_videos(cameras, root, options.videos, options.last_frame)
    numbers = frame_numbers(videos, options.first_frame, options.last_frame, options.every)
    boxes, boxes_from = _boxes(config, cameras, numbers)
    return Source(cameras, videos, numbers, boxes, boxes_from)


def detect(model: nn.Module, source: Source, config: Config) -> Detected:
    """The recording that the 2D network sees; from ``recording.reuse`` where that is set.

    Args:
        model: with ``detect`` of `ptri.models.pose_model.PoseModel`.

    Raises:
        UserError: nobody was found, or detections to reuse are stale.
    """
    options, cameras = config.recording, source.cameras
    depends_on = recording_cache.sources(
        model, source.videos, cameras, source.numbers, source.boxes, config
    )
    if options.reuse is not None:
        found = recording_cache.read(options.reuse, depends_on)
        text = f"2D: detections of {options.reuse}, made in {1000 * found.seconds:.0f} ms a frame"
    else:
        found = detect_videos(
            model, source.videos, cameras, source.numbers, config.data.image_size, source.boxes,
            config.data.crop_scale, options.max_roll_deg,
        )  # fmt: skip
        text = f"2D: {1000 * found.seconds:.0f} ms a frame of all views, reading included"
    if not np.isfinite(found.xy[found.confidence >= options.min_confidence]).any():
        raise UserError(
            f"{config.data.root}: nobody was found in any video; the person has to move before a "
            "still background, or give boxes (recording.boxes)"
        )
    share = np.isfinite(found.crops[..., 0]).mean(0)
    seen = ", ".join(f"{c.name} {100 * s:.0f} %" for c, s in zip(cameras, share))
    text += f"; boxes from {source.boxes_from}; the person was followed in {seen} of the frames"
    unsure = ~(found.confidence >= options.min_confidence)
    recording = recording_of(
        cameras, found.frames, np.where(unsure[..., None], np.nan, found.xy),
        np.where(unsure, 0.0, found.confidence), H36M17, found.covariance,
    )  # fmt: skip
    return Detected(recording, found, depends_on, text)


def _boxes(
    config: Config, cameras: Sequence[CameraEntry], numbers: Sequence[int]
) -> tuple[np.ndarray | None, str]:
    """Given boxes, or None for motion; and where they come from, in words."""
    options, root = config.recording, Path(config.data.root)
    names = [camera.name for camera in cameras]
    if options.boxes == "motion" or (options.boxes == "auto" and not (root / "boxes").is_dir()):
        return None, "motion"
    if options.boxes == "keypoints":
        recording = read_recording(
            root, options.keypoints, options.intrinsics, options.joint_set, names,
            options.first_frame, options.last_frame, options.min_confidence,
        )  # fmt: skip
        boxes = keypoint_boxes(recording, numbers)
        if not np.isfinite(boxes).any():
            raise UserError(f"{root}: no frame of the videos has keypoints; do file numbers agree?")
        return boxes, "keypoint files"
    folder = root / "boxes" if options.boxes == "auto" else Path(options.boxes)
    if not folder.is_dir() and (root / folder).is_dir():
        folder = root / folder
    boxes = read_box_files(folder, names, numbers)
    if not np.isfinite(boxes).any():
        raise UserError(f"{folder}: no box in any frame from {numbers[0]} to {numbers[-1]}")
    return boxes, "box files"
