"""Human3.6M: which frames and views a split holds, and whether they are all there.

Layout: ``extra/`` with the labels (`ptri.data.labels`) and
``processed/<subject>/<action>/imageSequence-undistorted/<camera>/img_%06d.jpg``, numbered from 1.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ptri.config import DataConfig
from ptri.data import transforms
from ptri.data.labels import Labels, check_camera, labels_path, read_labels
from ptri.errors import UserError

log = logging.getLogger(__name__)

# Scenes of S9 whose 3D truth is displaced; the list of the learnable-triangulation project.
DAMAGED = (("S9", "Greeting-2"), ("S9", "SittingDown-2"), ("S9", "Waiting-1"))
FOLDERS = {True: "imageSequence-undistorted", False: "imageSequence"}


class Index(NamedTuple):
    """The frames of a split, scene by scene, each in the order of its frames."""

    root: Path
    source: Path  # the labels file
    labels: Labels
    undistorted: bool  # which image folder is read
    cameras: tuple[int, ...]  # cameras in use, in the order of the views
    rows: np.ndarray  # (N,) int64, rows of the labels' table
    seen: np.ndarray  # (N, len(cameras)) bool, the view exists

    def folder(self, subject: int, action: int, camera: int) -> Path:
        """The image folder of one camera in one scene."""
        return (
            self.root
            / "processed"
            / self.labels.subject_names[subject]
            / self.labels.action_names[action]
            / FOLDERS[self.undistorted]
            / self.labels.camera_names[camera]
        )

    def image_path(self, row: int, camera: int) -> Path:
        """The image of a row of the table seen by a camera."""
        folder = self.folder(self.labels.subject[row], self.labels.action[row], camera)
        return folder / image_name(self.labels.frame[row])

    def camera_of(self, row: int, camera: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K (3, 3) px, R (3, 3), t (3,) mm of a camera in a row, world to camera."""
        subject, labels = self.labels.subject[row], self.labels
        return labels.K[subject, camera], labels.R[subject, camera], labels.t[subject, camera]


def image_name(frame: int) -> str:
    """File name of a frame: labels count frames from 0, files from 1."""
    return f"img_{frame + 1:06d}.jpg"


def build_index(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """Chooses the frames and views of a split and checks cameras, joints, boxes and images.

    Args:
        data: the configuration's section.
        split: "train", "test", or "all" subjects and frames.
        min_views: frames with fewer views are left out, with a warning.

    Raises:
        UserError: wrong root, missing labels or images, absurd cameras, unknown views, one view
            only, no frame of the split's subjects.
    """
    index = choose_frames(data, split, min_views)
    check_labels(index)
    missing = missing_images(index)
    if missing:
        raise UserError(
            f"{index.root}: {len(missing)} of {index.seen.sum()} images are missing, such as "
            f"{', '.join(map(str, missing[:3]))}; list them with: python scripts/prepare_h36m.py "
            f"check {index.root}"
        )
    return index


def choose_frames(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """The first step of `build_index`: which frames and views, without looking at any image."""
    root = Path(data.root)
    source = labels_path(root)
    labels = read_labels(source)
    if not (root / "processed").is_dir():
        raise UserError(f"{root / 'processed'}: no such folder; expected the images there")
    cameras = _choose_cameras(data.views, labels)
    if len(cameras) < min_views:
        where = "data.views" if data.views is not None else source
        raise UserError(
            f"{where}: {len(cameras)} view only; at least {min_views} are needed to triangulate"
        )
    rows = _choose_rows(data, split, labels, source)
    boxes = labels.boxes[rows][:, list(cameras)].astype(np.int64)
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    enough = seen.sum(1) >= min_views
    if not enough.all():
        row = rows[~enough][0]
        message = (
            f"{source}: {(~enough).sum()} of {len(rows)} {split} frames have fewer than "
            f"{min_views} views (such as {frame_name(labels, row)})"
        )
        if not enough.any():
            raise UserError(f"{message}; choose other data.views")
        log.warning("%s and are left out", message)
    index = Index(root, source, labels, True, cameras, rows[enough], seen[enough])
    first = index.image_path(index.rows[0], cameras[int(np.argmax(index.seen[0]))])
    return index._replace(undistorted=first.parent.is_dir())


def frame_name(labels: Labels, row: int) -> str:
    """A frame in words, such as "S9/Greeting-2 frame 64"."""
    subject = labels.subject_names[labels.subject[row]]
    return f"{subject}/{labels.action_names[labels.action[row]]} frame {labels.frame[row]}"


def scene_numbers(index: Index) -> np.ndarray:
    """(N,) int64, rises by one where the subject, the action or the set of views changes."""
    subject, action = (part[index.rows] for part in (index.labels.subject, index.labels.action))
    key = np.column_stack([subject, action, index.seen])  # (N, 2 + views)
    return np.append(0, (key[1:] != key[:-1]).any(1).cumsum())


def is_damaged(labels: Labels) -> np.ndarray:
    """(rows of the table,) bool: the frame belongs to one of S9's `DAMAGED` scenes."""
    subjects, actions = np.array(labels.subject_names), np.array(labels.action_names)
    scenes = [(subjects == s)[labels.subject] & (actions == a)[labels.action] for s, a in DAMAGED]
    return np.any(scenes, axis=0)


def _choose_cameras(views: list[int] | None, labels: Labels) -> tuple[int, ...]:
    names = labels.camera_names
    if views is None:
        return tuple(range(len(names)))
    chosen = [names.index(str(view)) if str(view) in names else view for view in views]
    for view in chosen:
        if not 0 <= view < len(names):
            raise UserError(
                f"data.views: no camera {view}; expected 0 to {len(names) - 1} or a name of "
                f"{', '.join(names)}"
            )
    if len(set(chosen)) != len(chosen):
        raise UserError(f"data.views: {views} names a camera twice")
    return tuple(chosen)


def _choose_rows(data: DataConfig, split: str, labels: Labels, path: Path) -> np.ndarray:
    """Rows of the split, thinned: every n-th labelled frame of each scene, from its first on."""
    names, step = labels.subject_names, 1
    if split != "all":
        names = [f"S{number}" for number in getattr(data, f"{split}_subjects")]
        step = getattr(data, f"{split}_every")
    rows = np.flatnonzero(np.isin(np.array(labels.subject_names), names)[labels.subject])
    if not data.include_damaged:
        rows = rows[~is_damaged(labels)[rows]]
    if len(rows) == 0:
        raise UserError(
            f"data.{split}_subjects: {path} has no frame of {', '.join(names) or 'nobody'}; it "
            f"holds {', '.join(labels.subject_names)}"
        )
    scene = labels.subject[rows].astype(np.int64) * len(labels.action_names) + labels.action[rows]
    order = np.lexsort((labels.frame[rows], scene))
    _, starts, counts = np.unique(scene[order], return_index=True, return_counts=True)
    position = np.arange(len(rows)) - np.repeat(starts, counts)  # in its scene
    return rows[order][position % step == 0]


# --- checks ----------------------------------------------------------------------------------


def check_labels(index: Index) -> None:
    """Checks the cameras in use, the joints, and that joints project into their boxes.

    Raises:
        UserError: absurd cameras or joints; cameras, joints and boxes that do not fit together.
    """
    labels = index.labels
    position, view = np.nonzero(index.seen)
    subject, camera = labels.subject[index.rows[position]], np.array(index.cameras)[view]
    for pair in np.unique(np.stack([subject, camera], 1), axis=0):
        check_camera(labels, *pair, index.source)
    finite = np.isfinite(labels.joints[index.rows]).all((1, 2))
    if not finite.all():
        name = frame_name(labels, index.rows[~finite][0])
        raise UserError(
            f"{index.source}: {(~finite).sum()} frames have NaN or infinite joints, such as {name}"
        )
    share = joints_in_boxes(index)
    if share < 0.5:
        raise UserError(
            f"{index.source}: only {100 * share:.0f} % of the joints project into their boxes; "
            "cameras, joints (mm) and boxes do not belong together"
        )


def joints_in_boxes(index: Index, num_frames: int = 100) -> float:
    """Share of the joints that project into 1.5 times their box, over some frames of the index."""
    inside: list[np.ndarray] = []
    last = len(index.rows) - 1
    for position in np.linspace(0, last, min(num_frames, last + 1)).astype(int):
        row = index.rows[position]
        for view in np.flatnonzero(index.seen[position]):
            camera = index.cameras[view]
            joints = index.labels.joints[row].astype(float)
            projected = transforms.project(joints, *index.camera_of(row, camera))
            centre, side = transforms.square_crop(index.labels.boxes[row, camera], 1.5)
            near = abs(projected[:, :2] - centre).max(1) <= side / 2
            inside.append(near & (projected[:, 2] > 0))
    return float(np.mean(inside))


def missing_images(index: Index) -> list[Path]:
    """The images in use that do not exist; lists each folder once."""
    missing = []
    for folder, frames in image_folders(index):
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        missing += [folder / name for name in map(image_name, frames) if name not in present]
    return missing


def damaged_images(index: Index) -> list[str]:
    """What is wrong with the images in use, by their first and last bytes, one message each."""
    damaged = []
    folders = list(image_folders(index))
    for folder, frames in tqdm(folders, desc="checking images", unit="folder", leave=False):
        for frame in frames:
            try:
                transforms.check_jpeg(folder / image_name(frame))
            except UserError as error:
                damaged.append(str(error))
    return damaged


def image_folders(index: Index) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields every image folder in use with its frames (n,)."""
    subjects, actions = index.labels.subject[index.rows], index.labels.action[index.rows]
    for subject, action in np.unique(np.stack([subjects, actions], 1), axis=0):
        scene = (subjects == subject) & (actions == action)
        for view, camera in enumerate(index.cameras):
            frames = index.labels.frame[index.rows[scene & index.seen[:, view]]]
            if len(frames):
                yield index.folder(subject, action, camera), frames
