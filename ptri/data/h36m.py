"""Human3.6M: which frames and views a split holds.

Layout: ``extra/`` with the labels (`ptri.data.labels`) and
``processed/<subject>/<action>/imageSequence-undistorted/<camera>/img_%06d.jpg``, numbered from 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptri.config import DataConfig
from ptri.data.index import Index, choose_cameras, frame_name, make_index
from ptri.data.labels import Labels, labels_path, read_labels
from ptri.errors import UserError

# Scenes of S9 whose 3D truth is displaced; the list of the learnable-triangulation project.
DAMAGED = (("S9", "Greeting-2"), ("S9", "SittingDown-2"), ("S9", "Waiting-1"))
FOLDERS = {True: "imageSequence-undistorted", False: "imageSequence"}


class Images(NamedTuple):
    """Where the images are: `ptri.data.index.Images`."""

    root: Path
    undistorted: bool

    def folder(self, subject: str, action: str, camera: str) -> Path:
        """The image folder of one camera in one scene."""
        return self.root / "processed" / subject / action / FOLDERS[self.undistorted] / camera

    def name(self, folder: Path, camera: str, frame: int) -> str:
        """File name of a frame: labels count frames from 0, files from 1."""
        return f"img_{frame + 1:06d}.jpg"

    def size(self, subject: str, camera: str) -> None:
        """Not in the labels."""


def choose_frames(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """Chooses the frames and views of a split, without looking at any image.

    Args:
        data: the configuration's section.
        split: "train", "test", or "all" subjects and frames.
        min_views: frames with fewer views are left out, with a warning.

    Raises:
        UserError: wrong root, missing labels, unknown views, one view only, no frame of the split's
            subjects, joints that are not finite.
    """
    root = Path(data.root)
    source = labels_path(root)
    labels = read_labels(source)
    if not (root / "processed").is_dir():
        raise UserError(f"{root / 'processed'}: no such folder; expected the images there")
    cameras = choose_cameras(data.views, labels, source, min_views)
    rows = _choose_rows(data, split, labels, source)
    finite = np.isfinite(labels.joints[rows]).all((1, 2))
    if not finite.all():
        name = frame_name(labels, rows[~finite][0])
        raise UserError(
            f"{source}: {(~finite).sum()} frames have NaN or infinite joints, such as {name}"
        )
    index = make_index(root, source, labels, Images(root, True), cameras, rows, min_views)
    first = index.image_path(index.rows[0], cameras[int(np.argmax(index.seen[0]))])
    return index._replace(images=Images(root, first.parent.is_dir()))


def is_damaged(labels: Labels) -> np.ndarray:
    """(rows of the table,) bool: the frame belongs to one of S9's `DAMAGED` scenes."""
    subjects, actions = np.array(labels.subject_names), np.array(labels.action_names)
    scenes = [(subjects == s)[labels.subject] & (actions == a)[labels.action] for s, a in DAMAGED]
    return np.any(scenes, axis=0)


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
