"""Human3.6M: which frames and views a split holds, and samples of them.

Layout: ``extra/`` with the labels (`ptri.data.labels`) and
``processed/<subject>/<action>/imageSequence-undistorted/<camera>/img_%06d.jpg``, numbered from 1.
Plain ``imageSequence`` images are undistorted (OpenCV's model) while they are cropped, so that
samples are always pinhole images.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ptri.config import AugmentConfig, DataConfig
from ptri.data import transforms
from ptri.data.labels import Labels, check_camera, labels_path, read_labels
from ptri.errors import UserError
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Sample

log = logging.getLogger(__name__)

# Scenes of S9 whose 3D truth is displaced; the list of the learnable-triangulation project.
DAMAGED = (("S9", "Greeting-2"), ("S9", "SittingDown-2"), ("S9", "Waiting-1"))
FOLDERS = {True: "imageSequence-undistorted", False: "imageSequence"}
_MIRROR = np.diag([-1.0, 1.0, 1.0])


class Index(NamedTuple):
    """The frames of a split, in the order of the labels: scene by scene."""

    root: Path
    labels: Labels
    undistorted: bool  # which image folder is read
    cameras: tuple[int, ...]  # cameras in use, in the order of the views
    rows: np.ndarray  # (N,) int64, rows of the labels' table
    seen: np.ndarray  # (N, len(cameras)) bool, the view exists

    def image_path(self, row: int, camera: int) -> Path:
        """The file of a row of the table seen by a camera."""
        return _folder(self, self.labels.subject[row], self.labels.action[row], camera) / (
            f"img_{self.labels.frame[row] + 1:06d}.jpg"
        )


class SampleKey(NamedTuple):
    """What a loader asks of a data set; a plain index means epoch 0 and all views."""

    index: int
    epoch: int = 0
    num_views: int = 0  # 0: all


# --- index -----------------------------------------------------------------------------------


def build_index(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """Chooses the frames and views of a split and checks them.

    Args:
        data: the configuration's section.
        split: "train" or "test".
        min_views: frames with fewer views are an error in tests and left out in training.

    Raises:
        UserError: wrong root, missing labels or images, absurd cameras, unknown views, one view
            only, no frame of the split's subjects.
    """
    root = Path(data.root)
    path = labels_path(root)
    labels = read_labels(path)
    if not (root / "processed").is_dir():
        raise UserError(f"{root / 'processed'}: no such folder; expected the images there")
    cameras = _choose_cameras(data.views, labels)
    if len(cameras) < min_views:
        raise UserError(
            f"data.views: {len(cameras)} view only; at least {min_views} are needed to triangulate"
        )
    rows = _choose_rows(data, split, labels, path)
    boxes = labels.boxes[rows][:, list(cameras)].astype(np.int64)
    seen = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    rows, seen = _drop_unseen(rows, seen, labels, split, max(min_views, 1), path)
    index = Index(root, labels, False, cameras, rows, seen)
    index = index._replace(undistorted=_use_undistorted(index, data.images))
    _check_cameras(index, path)
    _check_fit(index, path)
    check_images_exist(index)
    if data.check_images == "read":
        check_images_whole(index)
    return index


def is_damaged(labels: Labels) -> np.ndarray:
    """(rows of the table,) bool: the frame belongs to one of S9's `DAMAGED` scenes."""
    subjects, actions = np.array(labels.subject_names), np.array(labels.action_names)
    result = np.zeros(len(labels.frame), bool)
    for subject, action in DAMAGED:
        result |= (subjects[labels.subject] == subject) & (actions[labels.action] == action)
    return result


def _choose_cameras(views: list[int] | None, labels: Labels) -> tuple[int, ...]:
    names = labels.camera_names
    if views is None:
        return tuple(range(len(names)))
    chosen = []
    for view in views:
        if str(view) in names:
            chosen.append(names.index(str(view)))
        elif 0 <= view < len(names):
            chosen.append(view)
        else:
            raise UserError(
                f"data.views: no camera {view}; expected 0 to {len(names) - 1} or a name of "
                f"{', '.join(names)}"
            )
    if len(set(chosen)) != len(chosen):
        raise UserError(f"data.views: {views} names a camera twice")
    return tuple(chosen)


def _choose_rows(data: DataConfig, split: str, labels: Labels, path: Path) -> np.ndarray:
    """Rows of the split, thinned: every n-th labelled frame of each scene, from its first on."""
    if split not in ("train", "test"):
        raise ValueError(f"split: {split!r}; expected 'train' or 'test'")
    training = split == "train"
    wanted = data.train_subjects if training else data.test_subjects
    every = data.train_every if training else data.test_every
    names = [f"S{number}" for number in wanted]
    subjects = [i for i, name in enumerate(labels.subject_names) if name in names]
    rows = np.flatnonzero(np.isin(labels.subject, subjects))
    if not data.include_damaged:
        rows = rows[~is_damaged(labels)[rows]]
    if len(rows) == 0:
        raise UserError(
            f"data.{split}_subjects: {path} has no frame of {', '.join(names) or 'nobody'}; it "
            f"holds {', '.join(labels.subject_names)}"
        )
    scene = labels.subject[rows].astype(np.int64) * len(labels.action_names) + labels.action[rows]
    order = np.lexsort((labels.frame[rows], scene))
    rows, scene = rows[order], scene[order]
    starts = np.flatnonzero(np.append(True, scene[1:] != scene[:-1]))
    position = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return rows[position % every == 0]


def _drop_unseen(rows, seen, labels: Labels, split: str, min_views: int, path: Path):
    enough = seen.sum(1) >= min_views
    if enough.all():
        return rows, seen
    row = rows[~enough][0]
    example = (
        f"{labels.subject_names[labels.subject[row]]}/{labels.action_names[labels.action[row]]} "
        f"frame {labels.frame[row]}"
    )
    message = f"{(~enough).sum()} of {len(rows)} frames have fewer than {min_views} views"
    if split == "test" or not enough.any():
        raise UserError(f"{path}: {message} (such as {example}); choose other data.views")
    log.warning("%s: %s (such as %s) and are left out of training", path, message, example)
    return rows[enough], seen[enough]


def _use_undistorted(index: Index, images: str) -> bool:
    if images != "auto":
        return images == "undistorted"
    row = index.rows[0]
    camera = index.cameras[int(np.argmax(index.seen[0]))]
    labels = index.labels
    there = index._replace(undistorted=True)
    return _folder(there, labels.subject[row], labels.action[row], camera).is_dir()


def _folder(index: Index, subject: int, action: int, camera: int) -> Path:
    labels = index.labels
    return (
        index.root
        / "processed"
        / labels.subject_names[subject]
        / labels.action_names[action]
        / FOLDERS[index.undistorted]
        / labels.camera_names[camera]
    )


# --- checks ----------------------------------------------------------------------------------


def _check_cameras(index: Index, path: Path) -> None:
    subjects = index.labels.subject[index.rows]
    for subject in np.unique(subjects):
        used = index.seen[subjects == subject].any(0)
        for view, camera in enumerate(index.cameras):
            if used[view]:
                check_camera(index.labels, subject, camera, path)
    bad = ~np.isfinite(index.labels.joints[index.rows]).all((1, 2))
    if bad.any():
        raise UserError(f"{path}: {bad.sum()} frames have joints that are NaN or infinite")


def _check_fit(index: Index, path: Path) -> None:
    """Joints must mostly fall into their boxes; else cameras, units or frames do not belong."""
    inside, total = 0, 0
    for position in np.linspace(0, len(index.rows) - 1, num=min(100, len(index.rows))).astype(int):
        row = index.rows[position]
        for view in np.flatnonzero(index.seen[position]):
            box = index.labels.boxes[row, index.cameras[view]].astype(float)
            joints = transforms.project(
                index.labels.joints[row].astype(float), *_camera(index, row, index.cameras[view])
            )
            (x, y), side = transforms.square_crop(box, 1.5)
            near = abs(joints[:, :2] - (x, y)).max(1) <= side / 2
            inside += int((near & (joints[:, 2] > 0)).sum())
            total += len(joints)
    if inside < 0.5 * total:
        raise UserError(
            f"{path}: only {100 * inside / total:.0f} % of the joints project into their boxes; "
            "cameras, joints (mm) and boxes do not belong together"
        )


def check_images_exist(index: Index) -> None:
    """Lists each image folder once and compares.

    Raises:
        UserError: images are missing; names the first ones and how many.
    """
    missing, examples = 0, []
    for subject, action, camera, frames in _groups(index):
        folder = _folder(index, subject, action, camera)
        try:
            there = set(os.listdir(folder))
        except OSError:
            there = set()
        absent = [name for name in (f"img_{f + 1:06d}.jpg" for f in frames) if name not in there]
        missing += len(absent)
        examples += [str(folder / name) for name in absent[: 3 - len(examples)]]
    if missing:
        raise UserError(
            f"{index.root}: {missing} of {index.seen.sum()} images are missing, such as "
            f"{', '.join(examples)}; list them all with: python scripts/prepare_h36m.py check "
            f"{index.root}"
        )


def check_images_whole(index: Index) -> None:
    """Looks at the first and last bytes of every image.

    Raises:
        UserError: images are truncated or not JPEG; names the first ones and how many.
    """
    bad = []
    for subject, action, camera, frames in tqdm(
        list(_groups(index)), desc="checking images", unit="folder", leave=False
    ):
        folder = _folder(index, subject, action, camera)
        for frame in frames:
            try:
                transforms.check_jpeg(folder / f"img_{frame + 1:06d}.jpg")
            except UserError as error:
                bad.append(str(error))
    if bad:
        raise UserError(f"{len(bad)} damaged images: {'; '.join(bad[:3])}")


def _groups(index: Index):
    """Yields (subject, action, camera, frames (n,)) for every image folder in use."""
    labels = index.labels
    subject, action = labels.subject[index.rows], labels.action[index.rows]
    scenes = subject.astype(np.int64) * len(labels.action_names) + action
    for scene in np.unique(scenes):
        mine = scenes == scene
        first = np.argmax(mine)
        for view, camera in enumerate(index.cameras):
            frames = labels.frame[index.rows[mine & index.seen[:, view]]]
            if len(frames):
                yield int(subject[first]), int(action[first]), camera, frames


def _camera(index: Index, row: int, camera: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    subject, labels = index.labels.subject[row], index.labels
    return labels.K[subject, camera], labels.R[subject, camera], labels.t[subject, camera]


# --- samples ---------------------------------------------------------------------------------


class H36M(Dataset):
    """Samples of an index, without a leading B; `torch.utils.data` adds it.

    Everything random in a sample derives from (seed, key.epoch, key.index).
    """

    def __init__(
        self,
        index: Index,
        data: DataConfig,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        single_view: bool = False,
    ) -> None:
        """
        Args:
            augment: None for tests: all chosen views in their order, plain crops.
            single_view: items are single views (V = 1), for 2D training.
        """
        self.index, self.data, self.augment, self.seed = index, data, augment, seed
        views = index.seen.sum(1)
        if single_view:
            position, view = np.nonzero(index.seen)
            self.items = np.stack([position, view], 1)
            views = np.ones(len(position), np.int64)
        else:
            self.items = np.stack([np.arange(len(views)), np.full(len(views), -1)], 1)
        self.num_views = views  # (items,) views that an item has

    def __len__(self) -> int:
        return len(self.items)

    def row(self, item: int) -> int:
        """The row of the labels' table behind an item."""
        return int(self.index.rows[self.items[item, 0]])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = key if isinstance(key, SampleKey) else SampleKey(int(key))
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        position, view = self.items[key.index]
        views = np.flatnonzero(self.index.seen[position]) if view < 0 else np.array([view])
        if self.augment is not None and self.augment.shuffle_views:
            views = rng.permutation(views)
        views = views[: key.num_views or None]
        return self._sample(int(self.index.rows[position]), views, rng)

    def _sample(self, row: int, views: np.ndarray, rng: np.random.Generator) -> Sample:
        size, labels = self.data.image_size, self.index.labels
        joints = labels.joints[row].astype(np.float64)
        flip = self.augment is not None and rng.random() < self.augment.flip
        parts = [self._view(row, self.index.cameras[view], rng) for view in views]
        images, K, R, t = (np.stack(values) for values in zip(*parts))
        if flip:  # mirror the scene: images, cameras and joints stay consistent
            images = images[:, :, ::-1]
            K[:, 0, 2] = size - 1 - K[:, 0, 2]
            R, t = _MIRROR @ R @ _MIRROR, t @ _MIRROR
            joints = (joints @ _MIRROR)[list(H36M17.flip)]
        projected = np.stack([transforms.project(joints, *camera) for camera in zip(K, R, t)])
        xy, depth = projected[..., :2], projected[..., 2]
        inside = ((xy >= -0.5) & (xy <= size - 0.5)).all(-1) & (depth > 0)
        relative_R = R @ R[0].T
        relative_t = t - t[0] @ relative_R.transpose(0, 2, 1)  # (V, 3)
        return Sample(
            images=torch.stack([transforms.normalise(image) for image in images]),
            cameras=Cameras(_tensor(K), _tensor(relative_R), _tensor(relative_t)),
            joints3d=_tensor(joints @ R[0].T + t[0]),
            joints2d=_tensor(xy),
            visible=torch.from_numpy(inside),
            subject=torch.tensor(int(labels.subject[row])),
            action=torch.tensor(int(labels.action[row])),
            frame=torch.tensor(int(labels.frame[row])),
        )

    def _view(self, row: int, camera: int, rng: np.random.Generator):
        """One view: RGB image (H, W, 3) uint8 and its K, R, t with world extrinsics."""
        index, size, augment = self.index, self.data.image_size, self.augment
        K, R, t = _camera(index, row, camera)
        centre, side = transforms.square_crop(index.labels.boxes[row, camera], self.data.crop_scale)
        roll = 0.0
        if augment is not None:
            side = side * rng.uniform(1 - augment.scale, 1 + augment.scale)
            centre = centre + side * rng.uniform(-augment.shift, augment.shift, 2)
            roll = np.deg2rad(rng.uniform(-augment.rotation_deg, augment.rotation_deg))
        cropped_K, turn = transforms.crop_camera(K, centre, side, size, roll)
        reduction = transforms.reduction_for(side, size)
        image = transforms.read_jpeg(index.image_path(row, camera), reduction)
        source_K = transforms.resize_intrinsics(K, 1 / reduction)
        dist = None if index.undistorted else index.labels.dist[index.labels.subject[row], camera]
        image = transforms.warp(image, source_K, cropped_K, turn, size, dist)[:, :, ::-1]
        if augment is not None:
            image = transforms.augment_image(np.ascontiguousarray(image), augment, rng)
        return image, cropped_K, turn @ R, turn @ t


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
