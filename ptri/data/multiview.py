"""Samples of several views: images cropped to the network's size, with cameras and joints.

Plain ``imageSequence`` images are undistorted (OpenCV's model) while they are cropped, so that
samples are always pinhole images. Human3.6M's own code has half of OpenCV's tangential cross terms:
with its cameras that is 0.1 to 0.2 px where people are and up to 1.4 px in an image's corner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ptri.config import AugmentConfig, Config, DataConfig
from ptri.data import h36m, panoptic, transforms
from ptri.data.augmentation import augment_crop, augment_image
from ptri.data.index import Index, checked, scene_numbers
from ptri.errors import UserError
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Sample

_MIRROR = np.diag([-1.0, 1.0, 1.0])
_MIRRORED_JOINTS = list(H36M17.flip)


class View(NamedTuple):
    """A person's square crop."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    K: np.ndarray  # (3, 3) px
    R: np.ndarray  # (3, 3) world to camera
    t: np.ndarray  # (3,) mm


class SampleKey(NamedTuple):
    """What a loader asks of a data set."""

    index: int
    epoch: int = 0
    num_views: int = 0  # 0: all

    @classmethod
    def of(cls, key: int | SampleKey) -> SampleKey:
        """The key itself; a plain index means epoch 0 and all views."""
        return key if isinstance(key, cls) else cls(int(key))


# Where the frames of a kind of data come from, and the script that checks its files.
_LAYOUTS = {
    "h36m": (h36m.choose_frames, "prepare_h36m.py"),
    "panoptic": (panoptic.choose_frames, "prepare_panoptic.py"),
}


def build_index(data: DataConfig, split: str, min_views: int = 2) -> Index:
    """Chooses the frames and views of a split and checks cameras, joints, boxes and images.

    Args:
        data: the configuration's section.
        split: "train", "test", or "all" subjects and frames.
        min_views: frames with fewer views are left out, with a warning.

    Raises:
        UserError: wrong root, missing labels or images, absurd cameras, unknown views, one view
            only, no frame of the split's subjects; a kind of data that has no such files.
    """
    if data.kind not in _LAYOUTS:
        raise UserError(
            f"data.kind: {data.kind}; expected {' or '.join(_LAYOUTS)}: images of several views "
            "(single ones are for train2d.py only)"
        )
    choose_frames, script = _LAYOUTS[data.kind]
    return checked(choose_frames(data, split, min_views), script)


def open_split(config: Config, split: str, single_view: bool = False) -> MultiView:
    """The data set of a split, checked: "train" with augmentation, "test" without.

    Args:
        config: the whole configuration.
        split: "train" or "test".
        single_view: items are single views (V = 1), for 2D training.

    Raises:
        UserError: as `build_index`.
    """
    data = config.data
    if split == "test" and data.test_root is not None:
        data = dataclasses.replace(data, root=data.test_root)
    index = build_index(data, split, min_views=1 if single_view else 2)
    if split == "train":
        return MultiView(index, data, config.augment, config.run.seed, single_view)
    hidden = panoptic.UNKNOWN_JOINTS if config.evaluate.joints == "common" else ()
    return MultiView(index, data, None, config.run.seed, single_view, hidden)


class MultiView(Dataset):
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
        hidden: Sequence[int] = (),
    ) -> None:
        """
        Args:
            augment: None for tests: all chosen views in their order, plain crops.
            single_view: items are single views (V = 1), for 2D training.
            hidden: joints whose truth is treated as not known.
        """
        self.index, self.data, self.augment, self.seed = index, data, augment, seed
        self.hidden = list(hidden)
        self.items = np.argwhere(index.seen)  # (items, 2): position in the index, and the view
        if not single_view:  # -1: all views
            self.items = np.stack([np.arange(len(index.seen)), np.full(len(index.seen), -1)], 1)
        views = np.ones(len(self.items), np.int64) if single_view else index.seen.sum(1)
        self.num_views = views  # (items,) views that an item has
        self.scene = scene_numbers(index)[self.items[:, 0]]  # (items,)

    def __len__(self) -> int:
        return len(self.items)

    def row(self, item: int) -> int:
        """The row of the labels' table behind an item."""
        return int(self.index.rows[self.items[item, 0]])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        position, view = self.items[key.index]
        views = np.flatnonzero(self.index.seen[position]) if view < 0 else np.array([view])
        if self.augment is not None:  # any view may be the reference
            views = rng.permutation(views)
        views = views[: key.num_views or None]
        labels, row = self.index.labels, self.row(key.index)
        joints = labels.joints[row].astype(np.float64)
        joints[self.hidden] = np.nan
        flip = self.augment is not None and rng.random() < self.augment.flip
        parts = [self._view(row, self.index.cameras[view], joints, rng) for view in views]
        numbers = int(labels.subject[row]), int(labels.action[row]), int(labels.frame[row])
        return make_sample(parts, joints, flip, self.data.image_size, numbers)

    def _view(self, row: int, camera: int, joints: np.ndarray, rng: np.random.Generator) -> View:
        index = self.index
        read, dist = index.reader(row, camera), index.dist_of(row, camera)
        pose, box = index.camera_of(row, camera), index.labels.boxes[row, camera]
        return cut_view(read, pose, box, joints, self.data, self.augment, rng, dist)


def cut_view(
    read: Callable[[int], np.ndarray],
    camera: tuple[np.ndarray, np.ndarray, np.ndarray],
    box: np.ndarray,
    joints: np.ndarray,
    data: DataConfig,
    augment: AugmentConfig | None,
    rng: np.random.Generator,
    dist: np.ndarray | None = None,
) -> View:
    """A person's square crop, augmented.

    Args:
        read: the BGR image at a half, a fourth ... of its size, for 2, 4 ...
        camera: K (3, 3) px, R (3, 3), t (3,) mm, world to camera.
        box: (4,) px: top, left, bottom, right. joints: (17, 3) mm, world; NaN: not known.
        dist: (5,) OpenCV's; None: the image is undistorted.
    """
    K, R, t = camera
    centre, side = transforms.square_crop(box, data.crop_scale)
    roll = 0.0
    if augment is not None:
        xy = transforms.project(joints, K, R, t)[:, :2]
        centre, side, roll = augment_crop(centre, side, xy, augment, rng)
    cropped_K, turn = transforms.crop_camera(K, centre, side, data.image_size, roll)
    reduction = transforms.reduction_for(side, data.image_size)
    source_K = transforms.resize_intrinsics(K, 1 / reduction)
    image = transforms.warp(read(reduction), source_K, cropped_K, turn, data.image_size, dist)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if augment is not None:
        image = augment_image(image, augment, rng)
    return View(image, cropped_K, turn @ R, turn @ t)


def make_sample(
    parts: Sequence[View],
    joints: np.ndarray,
    flip: bool,
    size: int,
    numbers: tuple[int, int, int],
) -> Sample:
    """A sample of some views, in the first one's frame.

    Args:
        joints: (17, 3) mm, world. flip: mirror the scene: images, cameras and joints.
        size: px, of the images. numbers: of subject, action and frame.
    """
    images, K, R, t = (np.stack(values) for values in zip(*parts))
    if flip:
        images = images[:, :, ::-1]
        K[:, 0, 2] = size - 1 - K[:, 0, 2]
        R, t = _MIRROR @ R @ _MIRROR, t @ _MIRROR
        joints = (joints @ _MIRROR)[_MIRRORED_JOINTS]
    projected = np.stack([transforms.project(joints, *camera) for camera in zip(K, R, t)])
    xy, depth = projected[..., :2], projected[..., 2]
    inside = ((xy >= -0.5) & (xy <= size - 0.5)).all(-1) & (depth > 0)
    relative_R = R @ R[0].T
    relative_t = t - t[0] @ relative_R.transpose(0, 2, 1)  # (V, 3)
    relative_R[0], relative_t[0] = np.eye(3), 0.0  # exactly
    subject, action, frame = numbers
    return Sample(
        images=torch.stack([transforms.normalise(image) for image in images]),
        cameras=Cameras(_tensor(K), _tensor(relative_R), _tensor(relative_t)),
        joints3d=_tensor(joints @ R[0].T + t[0]),
        joints2d=_tensor(xy),
        visible=torch.from_numpy(inside),
        subject=torch.tensor(subject),
        action=torch.tensor(action),
        frame=torch.tensor(frame),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
