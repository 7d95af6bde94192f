"""Persons in photographs: with COCO's keypoints (`data.kind: coco`) or without (`photos`).

No camera is known of a photograph. Its plane is taken for a scene at distance 1 of a camera with
K = I, so that crops, rolls and mirroring are those of all other data; a sample's K then maps px of
the photograph to px of the crop. `joints3d` is NaN, and so are joints that nobody labelled and
those that COCO does not have.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ptri.config import AugmentConfig, Config, DataConfig
from ptri.data import transforms
from ptri.data.annotations import COCO_ROWS, OUR_ROWS, PREFIX, Persons, choose_persons, make_persons
from ptri.data.multiview import SampleKey, View, cut_view, make_sample
from ptri.errors import UserError
from ptri.skeleton import H36M17
from ptri.structures import Sample

_SPLITS = {"train": "train", "test": "val"}  # ours and COCO's
PHOTOS = (".jpg", ".jpeg", ".png")


class Photographs(Dataset):
    """Samples of one view, without a leading B; takes `SampleKey`, as `MultiView` does."""

    def __init__(
        self,
        persons: Persons,
        data: DataConfig,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            augment: None: plain crops.
        """
        self.persons, self.data, self.augment, self.seed = persons, data, augment, seed
        self.num_views = np.ones(len(persons.photo), np.int64)
        self.scene = np.zeros(len(persons.photo), np.int64)  # one for all

    def __len__(self) -> int:
        return len(self.num_views)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        flip = self.augment is not None and rng.random() < self.augment.flip
        view = crop_person(self.persons, key.index, self.data, self.augment, rng)
        joints = plane_joints(self.persons.keypoints[key.index])
        numbers = 0, 0, int(self.persons.number[key.index])
        sample = make_sample([view], joints, flip, self.data.image_size, numbers)
        return sample._replace(joints3d=torch.full_like(sample.joints3d, torch.nan))


def open_coco(config: Config, split: str) -> Photographs:
    """COCO's persons: "train" with augmentation, "test" (COCO's val) without.

    ``data.root`` is COCO's folder, or a file as `read_persons` takes it.

    Raises:
        UserError: no such files, damaged ones, missing images, or nobody left.
    """
    data, train = config.data, split == "train"
    root = Path(data.root if train else data.test_root or data.root)
    path = root if root.is_file() else _annotations(root, _SPLITS[split])
    if not train and path == Path(data.root):
        raise UserError(f"data.test_root: name the file of the test persons; {path} is trained on")
    persons = choose_persons(path, data.min_keypoints)
    persons = persons.rows(slice(None, None, data.train_every if train else data.test_every))
    _check_images(path, persons)
    return Photographs(persons, data, config.augment if train else None, config.run.seed)


def open_photos(config: Config) -> Photographs:
    """Photographs without keypoints below ``data.root``, to be learned from a teacher.

    Persons are those of its boxes.json, a list of {image, bbox}, or boxes.csv with the columns
    image, x, y, width, height; without either each JPEG or PNG file is one person's.

    Raises:
        UserError: no such folder or images, damaged files.
    """
    root = Path(config.data.root)
    given = [root / name for name in ("boxes.json", "boxes.csv") if (root / name).is_file()]
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder; expected one of photographs")
    if given:
        persons = choose_persons(given[0], 0)
    else:
        walk = os.walk(root, followlinks=True)
        files = (os.path.join(folder, name) for folder, _, names in walk for name in names)
        names = sorted(name for name in files if name.lower().endswith(PHOTOS))
        persons = make_persons(names, np.full((len(names), 4), np.nan), None)
    persons = persons.rows(slice(None, None, config.data.train_every))
    if not len(persons.photo):
        raise UserError(f"data.root: {root}: no JPEG or PNG image in it; name another folder")
    _check_images(given[0] if given else root, persons)
    return Photographs(persons, config.data, config.augment, config.run.seed)


def crop_person(
    persons: Persons,
    row: int,
    data: DataConfig,
    augment: AugmentConfig | None = None,
    rng: np.random.Generator | None = None,
) -> View:
    """The square crop of a person's box; its K maps px of the photograph to px of the crop."""
    read = functools.partial(transforms.read_image, persons.images[persons.photo[row]])
    x, y, width, height = persons.box[row]
    if np.isnan(x):
        x, y, (height, width) = 0, 0, read().shape[:2]
    box = np.array([y, x, y + height, x + width])
    camera = np.eye(3), np.eye(3), np.zeros(3)
    return cut_view(read, camera, box, plane_joints(persons.keypoints[row]), data, augment, rng)


def plane_joints(keypoints: np.ndarray) -> np.ndarray:
    """Our joints (17, 3) as x, y, 1 of COCO's keypoints (17, 3), NaN where they are not known."""
    joints = np.full((len(H36M17.joints), 3), np.nan)
    x, y, flag = keypoints[COCO_ROWS].T
    joints[OUR_ROWS] = np.where(flag > 0, [x, y, np.ones_like(x)], np.nan).T
    return joints


def _annotations(root: Path, split: str) -> Path:
    """The file of a split in COCO's folder; of several years the last."""
    paths = sorted(root.glob(f"annotations/{PREFIX}{split}*.json"))
    if not paths:
        raise UserError(
            f"data.root: {root / 'annotations'}: no {PREFIX}{split}2017.json; extract COCO's "
            f"annotations_trainval2017.zip and {split}2017.zip into {root}, or name a JSON file of "
            "persons"
        )
    return paths[-1]


def _check_images(path: Path, persons: Persons) -> None:
    """Raises UserError where images are missing; lists each folder once."""
    wanted = defaultdict(list)
    for number in np.unique(persons.photo):
        folder, name = os.path.split(persons.images[number])
        wanted[folder].append(name)
    missing, count = [], 0
    for folder, names in wanted.items():
        present = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        missing += [os.path.join(folder, name) for name in names if name not in present]
        count += len(names)
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {count} images are missing, such as "
            f"{', '.join(missing[:3])}; extract them again, or correct the path"
        )
