"""CMU Panoptic: which frames and views a split holds.

Images are ``<sequence>/hdImgs/00_03/00_03_%08d.jpg`` (or ``.png``) or frames of
``hdVideos/hd_00_03.mp4``; frame n of a video is image n, counted from 0. The other files are read
by `ptri.data.panoptic_files`. What the joints mean against Human3.6M's: docs/panoptic.md.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ptri.config import DataConfig
from ptri.data import transforms
from ptri.data.index import Index, choose_cameras, make_index
from ptri.data.labels import NUM_JOINTS, Labels
from ptri.data.panoptic_files import (
    COCO19,
    Sequence,
    check_units,
    inside_image,
    pinhole,
    read_sequence,
    sequence_names,
)
from ptri.errors import UserError
from ptri.skeleton import H36M17, MIN_KNOWN_JOINTS, linear_map, map_joints

log = logging.getLogger(__name__)

# Sets of HD cameras by number; those of Bartol et al., CVPR 2022.
CAMERA_SETS = {
    "CMU0": (3, 6, 12, 13, 23),
    "CMU1": (1, 2, 3, 4, 6, 7, 10),
    "CMU2": (12, 16, 18, 19, 22, 23, 30),
    "CMU3": (10, 12, 16, 18),
    "CMU4": (6, 7, 10, 12, 16, 18, 19, 22, 23, 30),
}
# What CMU's joints do not tell of Human3.6M's: the spine and the top of the head.
UNKNOWN_JOINTS = np.flatnonzero(np.isnan(linear_map(COCO19, H36M17)).any(1))
MIN_INSIDE = 0.25  # share of a person's joints that an image needs to be a view of them
BOX_MARGIN = 0.25  # the head's top is no joint: share of the joints' longer extent, in all


class Images(NamedTuple):
    """Where the images are: `ptri.data.index.Images`."""

    root: Path
    sizes: Mapping[tuple[str, str], tuple[int, int]] = MappingProxyType({})  # by sequence, camera
    png: frozenset[Path] = frozenset()  # folders of PNG images, the others' are JPEG
    undistorted: bool = False

    def folder(self, subject: str, action: str, camera: str) -> Path:
        """The folder of one camera's images in a sequence, or its video where that is missing."""
        folder = self.root / subject / "hdImgs" / camera
        video = self.root / subject / "hdVideos" / f"hd_{camera}.mp4"
        return video if video.is_file() and not folder.is_dir() else folder

    def name(self, folder: Path, camera: str, frame: int) -> str:
        """File name of a frame in its folder."""
        return f"{camera}_{frame:08d}.{'png' if folder in self.png else 'jpg'}"

    def size(self, subject: str, camera: str) -> tuple[int, int]:
        """Width and height (px) of a sequence's camera in the calibration."""
        return self.sizes[subject, camera]

    def any_of(self, sequence: str, camera: str) -> bool:
        """Whether a camera has a folder of images or a video."""
        return self.folder(sequence, "", camera).exists()


def choose_frames(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """Chooses the frames and views of a split, without looking at any image.

    A frame counts where one person is known by pelvis and `MIN_KNOWN_JOINTS` joints. What is left
    out is counted in a warning.

    Args:
        data: the configuration's section.
        split: "train", "test", or "all" sequences and frames.
        min_views: frames with fewer views are left out, with a warning.

    Raises:
        UserError: a sequence or a file that is missing or damaged; unknown views or such without
            images; other units; nobody.
    """
    root = Path(data.root)
    names, step = sequence_names(root), 1
    if split != "all":
        key, step = f"{split}_sequences", getattr(data, f"{split}_every")
        wanted = getattr(data, key)
        absent = [name for name in wanted if name not in names]
        if absent or not wanted:
            what = ", ".join(absent) or "sequence for an empty list"
            raise UserError(f"data.{key}: {root} has no {what}; it holds {', '.join(names)}")
        names = wanted
    images, recorded, left_out, total = Images(root), [], Counter(), 0
    for name in tqdm(names, desc="reading bodies", unit="sequence", leave=False):
        sequence = read_sequence(root, name, step)
        check_units(sequence)
        rows, others = choose_persons(sequence, data.person)
        left_out += others
        total += sequence.num_frames
        if len(rows):
            recorded.append(sequence.take(rows))
        elif split != "all":
            raise UserError(_nobody(root, sequence, data.person))
    if not recorded:
        raise UserError(_nobody(root, sequence, data.person))
    if left_out:
        counts = ", ".join(f"{count} with {what}" for what, count in left_out.items())
        log.warning("%s: of %d frames %d left out: %s", root, total, left_out.total(), counts)
    chosen = camera_names(data.views, recorded, images)
    labels = make_labels(recorded, chosen, images)
    cameras = choose_cameras(chosen, labels, root, min_views)
    folders = [images.folder(part.name, "", name) for part in recorded for name in chosen]
    images = images._replace(
        sizes={
            (sequence.name, camera): (int(width), int(height))
            for sequence in recorded
            for camera, (width, height) in zip(sequence.camera_names, sequence.sizes)
        },
        png=frozenset(filter(_holds_png, folders)),
    )
    return make_index(root, root, labels, images, cameras, np.arange(len(labels.frame)), min_views)


# --- choices ---------------------------------------------------------------------------------


def choose_persons(sequence: Sequence, person: int | None) -> tuple[np.ndarray, Counter]:
    """The bodies that count, at most one a frame.

    Args:
        person: an id; None: the frames with one person only.

    Returns:
        (n,) rows of the sequence's bodies; how many frames are left out, by the reason.
    """
    frames, number = np.unique(sequence.frame, return_inverse=True)
    asked = np.full(len(number), True) if person is None else sequence.person == person
    count = np.bincount(number[asked], minlength=len(frames))  # in a frame
    wanted = asked & (count == 1)[number]
    joints = map_joints(sequence.joints, linear_map(sequence.skeleton, H36M17))
    known = np.isfinite(joints).all(-1)
    enough = known[:, H36M17.root] & (known.sum(1) >= MIN_KNOWN_JOINTS)
    several = "several people (data.person chooses one)" if person is None else "that id twice"
    left_out = {
        "nobody": sequence.num_frames - len(frames),
        "other people only": int((count == 0).sum()),
        several: int((count > 1).sum()),
        "no pelvis or too few joints": int((wanted & ~enough).sum()),
    }
    return np.flatnonzero(wanted & enough), Counter(left_out)


def _holds_png(folder: Path) -> bool:
    """Whether a folder's images are PNG; where there are both kinds, JPEG counts."""
    names = os.listdir(folder) if folder.is_dir() else []
    kinds = {name[-4:] for name in names}
    return ".png" in kinds and ".jpg" not in kinds


def _nobody(root: Path, sequence: Sequence, person: int | None) -> str:
    """Why a sequence has no frame that counts."""
    place, ids = root / sequence.name, sorted(set(sequence.person.tolist()))
    if not ids:
        return f"{place}: nobody in any of its {sequence.num_frames} frames (bodies is empty)"
    who = f"its persons are {', '.join(map(str, ids))}"
    if person is None:
        return (
            f"{place}: no frame with one person only (and pelvis and {MIN_KNOWN_JOINTS} joints "
            f"known); choose one with data.person (check: --person): {who}"
        )
    return f"data.person: {place} has no frame of person {person}; {who}"


def camera_names(views: Any, recorded: Items[Sequence], images: Images) -> list[str]:
    """The cameras that ``data.views`` chooses, in its order.

    Args:
        views: names, numbers, names of `CAMERA_SETS`, or a list of these; None: all that have
            images in some sequence, or all where none has any.

    Raises:
        UserError: a camera has no images, or is not in the calibration.
    """
    known = sorted({name for sequence in recorded for name in sequence.camera_names})
    if views is None:
        there = [c for c in known if any(images.any_of(s.name, c) for s in recorded)]
        return there or known
    chosen: list[str] = []
    for view in views if isinstance(views, (list, tuple)) else [views]:
        numbers = CAMERA_SETS.get(str(view), (view,))
        chosen += [f"00_{n:02d}" if isinstance(n, int) else str(n) for n in numbers]
    for name in chosen:
        if name not in known:
            raise UserError(
                f"data.views: no camera {name}; expected a number 0 to 30, a name of "
                f"{', '.join(known)}, or a set of {', '.join(CAMERA_SETS)}"
            )
        for sequence in recorded:
            if not images.any_of(sequence.name, name):
                place = images.root / sequence.name
                raise UserError(
                    f"{place}: camera {name} has no images; expected the folder hdImgs/{name} or "
                    f"hdVideos/hd_{name}.mp4, or leave it out of data.views or evaluate.camera_sets"
                )
    return chosen


def make_labels(recorded: Items[Sequence], chosen: Items[str], images: Images) -> Labels:
    """The labels of some sequences: each is a subject, all its frames one action.

    A view of a chosen camera exists, and has a box, where there are images of it (or none of any
    camera, which is an error later) and it sees the person.
    """
    names = sorted({name for sequence in recorded for name in sequence.camera_names})
    S, C = len(recorded), len(names)
    K, R = np.tile(np.eye(3), (S, C, 1, 1)), np.tile(np.eye(3), (S, C, 1, 1))
    dist, t = np.zeros((S, C, 5)), np.zeros((S, C, 3))
    boxes = []
    for s, sequence in enumerate(recorded):
        places = [names.index(name) for name in sequence.camera_names]
        K[s, places], dist[s, places] = sequence.K, sequence.dist
        R[s, places], t[s, places] = sequence.R, sequence.t
        part = np.zeros((len(sequence.frame), C, 4), np.int16)
        anything = any(images.any_of(sequence.name, name) for name in sequence.camera_names)
        for c, name in enumerate(sequence.camera_names):
            if name in chosen and (images.any_of(sequence.name, name) or not anything):
                part[:, places[c]] = view_boxes(sequence, c)
        boxes.append(part)
    joints = [map_joints(s.joints, linear_map(s.skeleton, H36M17)) for s in recorded]
    return Labels(
        subject_names=tuple(sequence.name for sequence in recorded),
        camera_names=tuple(names),
        action_names=("hd",),
        K=K,
        dist=dist,
        R=R,
        t=t,
        subject=np.repeat(np.arange(S, dtype=np.int16), [len(s.frame) for s in recorded]),
        action=np.zeros(sum(len(s.frame) for s in recorded), np.int16),
        frame=np.concatenate([sequence.frame for sequence in recorded]).astype(np.int32),
        joints=np.concatenate(joints).astype(np.float32).reshape(-1, NUM_JOINTS, 3),
        boxes=np.concatenate(boxes),
    )


# --- views -----------------------------------------------------------------------------------


def view_boxes(sequence: Sequence, camera: int) -> np.ndarray:
    """Square boxes (N, 4) px of the undistorted image, around the joints.

    0 where the camera sees too few of them.
    """
    points = pinhole(sequence, camera)
    xy = np.where(points[..., 2:] > 0, points[..., :2], np.nan)
    share = inside_image(sequence, camera).sum(1) / np.isfinite(xy).all(-1).sum(1).clip(1)
    boxes = transforms.square_boxes(xy, BOX_MARGIN)
    return np.where((share >= MIN_INSIDE)[:, None], boxes, 0).astype(np.int16)
