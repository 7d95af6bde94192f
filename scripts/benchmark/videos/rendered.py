"""Rendered rigs of several cameras as recordings: videos and a camera file with the exact truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ptri.data.labels import Labels, labels_path, read_labels
from ptri.errors import UserError
from ptri.evaluation.outputs import write_json

FRAMES_PER_SECOND = 50.0  # that the labels number frames at
CODEC = "MJPG"  # of .avi files, which every OpenCV writes


def write_recordings(root: str | Path, out: str | Path, most: int = 0) -> list[Path]:
    """Writes the clips of a rendered data set (scripts/render_people.py, mode rig) as recordings.

    Args:
        root: in Human3.6M's layout, undistorted images.
        out: gets a folder <subject>_<action> of each clip, unless it is there.
        most: so many clips, spread evenly; 0: all.

    Returns:
        The recordings' folders.

    Raises:
        UserError: no such data set, or an image that cannot be read.
    """
    root = Path(root)
    labels = read_labels(labels_path(root))
    scenes = np.unique(np.stack([labels.subject, labels.action], 1), axis=0)
    if most:
        chosen = np.linspace(0, len(scenes) - 1, min(most, len(scenes))).round().astype(int)
        scenes = scenes[chosen]
    return [_write_scene(root, labels, subject, action, Path(out)) for subject, action in scenes]


def _write_scene(root: Path, labels: Labels, subject: int, action: int, out: Path) -> Path:
    names = labels.subject_names[subject], labels.action_names[action]
    folder = out / "_".join(names)
    if (folder / "calibration.json").is_file():
        return folder
    rows = np.flatnonzero((labels.subject == subject) & (labels.action == action))
    frames = labels.frame[rows]
    step = int(np.diff(frames).min()) if len(frames) > 1 else 1
    cameras = []
    for c, camera in enumerate(labels.camera_names):
        images = root.joinpath("processed", *names, "imageSequence-undistorted", camera)
        path = folder / "videos" / f"{camera}.avi"
        size = _write_video(path, images, frames, FRAMES_PER_SECOND / step)
        pose = {name: getattr(labels, name)[subject, c] for name in ("K", "R", "t")}
        cameras.append({"name": camera, "size": size, **pose})
    write_json(folder / "calibration.json", {"units": "mm", "cameras": cameras})
    return folder


def _write_video(path: Path, images: Path, frames: np.ndarray, fps: float) -> tuple[int, int]:
    """Writes one camera's images as a video; returns width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, size = None, (0, 0)
    for frame in frames:
        file = images / f"img_{frame + 1:06d}.jpg"
        image = cv2.imread(str(file))
        if image is None:
            raise UserError(f"{file}: cannot be read; render the data set again")
        if writer is None:
            size = image.shape[1::-1]
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODEC), fps, size)
            writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
        writer.write(image)
    writer.release()
    return size
