"""Which frames and views of labelled images a data set holds, and whether they are all there.

An `Index` is made by the module of each layout (`ptri.data.h36m`, `ptri.data.panoptic`).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from ptri.data import transforms
from ptri.data.labels import Labels, check_camera
from ptri.data.video_frames import num_frames, read_video_frame
from ptri.errors import UserError

log = logging.getLogger(__name__)

VIDEO = ".mp4"  # an image "folder" of this name is a video, whose "files" are its frames


class Images(Protocol):
    """Where a layout keeps its images."""

    undistorted: bool  # pinhole images; else `Labels.dist` is undone while they are cropped

    def folder(self, subject: str, action: str, camera: str) -> Path:
        """The folder of one camera's images in one scene, or its video."""

    def name(self, folder: Path, camera: str, frame: int) -> str:
        """The file name of a frame in its folder."""

    def size(self, subject: str, camera: str) -> tuple[int, int] | None:
        """Width and height (px) that the camera was calibrated for; None: not known."""


class Index(NamedTuple):
    """The frames of a split, scene by scene, each in the order of its frames."""

    root: Path
    source: Path  # of the labels, for messages
    labels: Labels
    images: Images
    cameras: tuple[int, ...]  # cameras in use, in the order of the views
    rows: np.ndarray  # (N,) int64, rows of the labels' table
    seen: np.ndarray  # (N, len(cameras)) bool, the view exists

    def folder(self, subject: int, action: int, camera: int) -> Path:
        """The images of one camera in one scene."""
        labels = self.labels
        names = labels.subject_names[subject], labels.action_names[action]
        return self.images.folder(*names, labels.camera_names[camera])

    def image_path(self, row: int, camera: int) -> Path:
        """The image of a row of the table seen by a camera."""
        folder = self.folder(self.labels.subject[row], self.labels.action[row], camera)
        return folder / self.image_name(folder, camera, self.labels.frame[row])

    def image_name(self, folder: Path, camera: int, frame: int) -> str:
        """What a camera's frame is called in its folder."""
        if folder.suffix == VIDEO:
            return f"frame {frame}"
        return self.images.name(folder, self.labels.camera_names[camera], frame)

    def reader(self, row: int, camera: int) -> Callable[[int], np.ndarray]:
        """Reads that image as BGR, at a half, a fourth ... of its size for 2, 4 ..."""
        path, labels = self.image_path(row, camera), self.labels
        if path.parent.suffix == VIDEO:
            read = functools.partial(read_video_frame, path.parent, int(labels.frame[row]))
        else:
            read = functools.partial(transforms.read_image, path)
        names = labels.subject_names[labels.subject[row]], labels.camera_names[camera]
        size = self.images.size(*names)
        return read if size is None else functools.partial(_read_sized, read, path, size)

    def dist_of(self, row: int, camera: int) -> np.ndarray | None:
        """Distortion (5,) of that image; None: a pinhole image."""
        undistorted = self.images.undistorted
        return None if undistorted else self.labels.dist[self.labels.subject[row], camera]

    def camera_of(self, row: int, camera: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K (3, 3) px, R (3, 3), t (3,) mm of a camera in a row, world to camera."""
        subject, labels = self.labels.subject[row], self.labels
        return labels.K[subject, camera], labels.R[subject, camera], labels.t[subject, camera]


def _read_sized(
    read: Callable[[int], np.ndarray], path: Path, size: tuple[int, int], reduction: int
) -> np.ndarray:
    """A reduced image, checked: it has the size of the calibration."""
    image = read(reduction)
    height, width = image.shape[:2]
    # Sides that the reduction does not divide are rounded up or down.
    if max(abs(width - size[0] / reduction), abs(height - size[1] / reduction)) >= 1:
        raise UserError(
            f"{path}: about {width * reduction} x {height * reduction} px, but its camera is "
            f"calibrated for {size[0]} x {size[1]}; extract the images at their full size"
        )
    return image


def make_index(
    root: Path,
    source: Path,
    labels: Labels,
    images: Images,
    cameras: tuple[int, ...],
    rows: np.ndarray,
    min_views: int,
) -> Index:
    """The index of some rows, put in order; views are those that have a box.

    Args:
        rows: of the labels' table. min_views: frames with fewer are left out, with a warning.

    Raises:
        UserError: no frame has enough views.
    """
    boxes = labels.boxes[rows][:, list(cameras)].astype(np.int64)
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    enough = seen.sum(1) >= min_views
    if not enough.all():
        row = rows[~enough][0]
        message = (
            f"{source}: {(~enough).sum()} of {len(rows)} frames have fewer than {min_views} views "
            f"(such as {frame_name(labels, row)})"
        )
        if not enough.any():
            raise UserError(f"{message}; choose other data.views")
        log.warning("%s and are left out", message)
    rows, seen = rows[enough], seen[enough]
    # Frames of a scene that lack the same views stand together, so that they can be pooled.
    keys = labels.frame[rows], *(~seen.T[::-1]), labels.action[rows], labels.subject[rows]
    order = np.lexsort(keys)
    return Index(root, source, labels, images, cameras, rows[order], seen[order])


def choose_cameras(views: Any, labels: Labels, source: Path, min_views: int) -> tuple[int, ...]:
    """The cameras that ``data.views`` chooses by name or index, in its order.

    Args:
        views: one or a list; None: all.

    Raises:
        UserError: an unknown camera, one twice, or too few.
    """
    names = labels.camera_names
    wanted = range(len(names)) if views is None else views
    wanted = wanted if isinstance(wanted, (range, list, tuple)) else [wanted]
    places = {name: place for place, name in enumerate(names)}
    places |= {str(place): place for place in range(len(names)) if str(place) not in names}
    chosen = [places.get(str(view), view) for view in wanted]
    for view in chosen:
        if view not in range(len(names)):
            raise UserError(
                f"data.views: no camera {view}; expected 0 to {len(names) - 1} or a name of "
                f"{', '.join(names)}"
            )
    if len(set(chosen)) != len(chosen):
        raise UserError(f"data.views: {views} names a camera twice")
    if len(chosen) < min_views:
        where = "data.views" if views is not None else source
        raise UserError(
            f"{where}: {len(chosen)} view only; at least {min_views} are needed to triangulate"
        )
    return tuple(chosen)


def frame_name(labels: Labels, row: int) -> str:
    """A frame in words, such as "S9/Greeting-2 frame 64"."""
    subject = labels.subject_names[labels.subject[row]]
    return f"{subject}/{labels.action_names[labels.action[row]]} frame {labels.frame[row]}"


def scene_numbers(index: Index) -> np.ndarray:
    """(N,) int64, rises by one where the subject, the action or the set of views changes."""
    subject, action = (part[index.rows] for part in (index.labels.subject, index.labels.action))
    key = np.column_stack([subject, action, index.seen])  # (N, 2 + views)
    return np.append(0, (key[1:] != key[:-1]).any(1).cumsum())


# --- checks ----------------------------------------------------------------------------------


def check_labels(index: Index) -> None:
    """Checks the cameras in use, and that joints project into their boxes.

    Raises:
        UserError: absurd cameras; cameras, joints and boxes that do not fit together.
    """
    labels = index.labels
    position, view = np.nonzero(index.seen)
    subject, camera = labels.subject[index.rows[position]], np.array(index.cameras)[view]
    for pair in np.unique(np.stack([subject, camera], 1), axis=0):
        check_camera(labels, *pair, index.source)
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
            joints = joints[np.isfinite(joints).all(1)]  # those that are known
            projected = transforms.project(joints, *index.camera_of(row, camera))
            centre, side = transforms.square_crop(index.labels.boxes[row, camera], 1.5)
            near = abs(projected[:, :2] - centre).max(1) <= side / 2
            inside.append(near & (projected[:, 2] > 0))
    return float(np.concatenate(inside).mean())


def checked(index: Index, script: str) -> Index:
    """The index itself, once its labels are checked and its images are there.

    Args:
        script: that lists what is missing, for the message.

    Raises:
        UserError: as `check_labels`; missing images.
    """
    check_labels(index)
    missing = missing_images(index)
    if missing:
        raise UserError(
            f"{index.root}: {len(missing)} of {index.seen.sum()} images are missing, such as "
            f"{', '.join(map(str, missing[:3]))}; list them with: python scripts/{script} "
            f"check {index.root}"
        )
    return index


def missing_images(index: Index) -> list[Path]:
    """The images in use that do not exist; lists each folder once."""
    missing = []
    for _, folder, names in image_folders(index):
        if folder.suffix == VIDEO:
            present = {f"frame {number}" for number in range(num_frames(folder))}
        else:
            present = set(os.listdir(folder)) if folder.is_dir() else set()
        missing += [folder / name for name in names if name not in present]
    return missing


def damaged_images(index: Index) -> list[str]:
    """What is wrong with the images in use, one message each.

    Of files the first and last bytes are looked at; of a video, the last frame is read.
    """
    damaged = []
    folders = list(image_folders(index))
    for _, folder, names in tqdm(folders, desc="checking images", unit="folder", leave=False):
        video = folder.suffix == VIDEO
        for name in names[-1:] if video else names:
            try:
                if video:
                    read_video_frame(folder, int(name.partition(" ")[2]))
                else:
                    transforms.check_image(folder / name)
            except UserError as error:
                damaged.append(str(error))
    return damaged


def image_folders(index: Index) -> Iterator[tuple[tuple[int, int], Path, list[str]]]:
    """Yields (subject, action), folder and names of the images in use, folder by folder."""
    labels = index.labels
    subjects, actions = labels.subject[index.rows], labels.action[index.rows]
    for subject, action in np.unique(np.stack([subjects, actions], 1), axis=0):
        scene = (subjects == subject) & (actions == action)
        for view, camera in enumerate(index.cameras):
            frames = np.sort(labels.frame[index.rows[scene & index.seen[:, view]]])
            if len(frames):
                folder = index.folder(subject, action, camera)
                names = [index.image_name(folder, camera, frame) for frame in frames]
                yield (subject, action), folder, names
