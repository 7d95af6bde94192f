"""Single images rendered while training asks for them: `data.kind: rendered`.

A training image is a function of the seed, the pass and its number, so the order is that of the
other loaders, a resumed run sees what the uninterrupted one would have seen, and no image comes
twice. The test images are always the same, of people who are not trained on; they are made once,
in processes of their own: a process that has drawn must not fork.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset

from ptri.config import Config
from ptri.data import augmentation, transforms
from ptri.data.multiview import SampleKey, View, make_sample
from ptri.errors import UserError
from ptri.fields import build
from ptri.people.retarget import load_part_motion
from ptri.render.people.body import coco_weights
from ptri.render.people.garment_files import open_folder
from ptri.render.people.wardrobe import body_faces
from ptri.render.processes import run_jobs
from ptri.render.settings import RenderConfig
from ptri.render.single import Crop, Shot, Studio
from ptri.render.stage import backdrops
from ptri.structures import Sample

_TRAIN_CROWD, _TEST_CROWD = 0, 1
_CHUNK = 16  # test images made at once


class Rendered(Dataset):
    """Samples of one view, without a leading B; takes `SampleKey` as `MultiView` does.

    Args:
        config: the sections ``render``, ``data`` (image_size, crop_scale, workers), ``augment``
            and the run's seed.
        split: "train" or "test" (`render.test_images`, without augmentation, held-out trials of
            motion capture).

    Raises:
        UserError: the `render` extra or OpenGL is missing; bad folders or files.
    """

    def __init__(self, config: Config, split: str) -> None:
        self.data, self.seed = config.data, config.run.seed
        self.augment = config.augment if split == "train" else None
        scale, shift = (self.augment.scale, self.augment.shift) if self.augment else (0.0, 0.0)
        crop = config.data.crop_scale
        self.crop = Crop(crop * (1 - scale), crop * (1 + scale), shift)
        self.render = build(RenderConfig, {**config.render, "size": config.data.image_size})
        if split != "train":  # .bvh files have no held-out trials
            captured = tuple(name for name in self.render.mocap if name.endswith(".npz"))
            self.render = dataclasses.replace(self.render, mocap=captured, mocap_split="held_out")
        with _plain_errors():  # and loads what worker processes share by being forked later
            backdrops.list_pictures(self.render.backgrounds)
            if self.render.garments:
                open_folder(self.render.garments)
            if self.render.mocap:
                load_part_motion(self.render.mocap, self.render.mocap_split)
            body_faces(self.render.faces)
            coco_weights()
        count = self.render.pass_images if split == "train" else self.render.test_images
        self.num_views = np.ones(count, np.int64)
        self.scene = np.zeros(count, np.int64)  # one for all
        self._shots = None if split == "train" else self._make_all(config.data.workers)

    def __len__(self) -> int:
        return len(self.num_views)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Sample]:
        keys = [SampleKey.of(key) for key in keys]
        if self._shots is not None:
            return [self._sample(self._shots[key.index], key) for key in keys]
        numbers = [key.epoch * len(self) + key.index for key in keys]
        shots = self._studio().shoot([(self.seed, _TRAIN_CROWD, n) for n in numbers])
        return [self._sample(shot, key) for shot, key in zip(shots, keys)]

    def _studio(self) -> Studio:
        os.environ.setdefault("LP_NUM_THREADS", "1")
        with _plain_errors():
            return _open_studio(os.getpid(), self.render, self.crop)

    def _make_all(self, workers: int) -> list[Shot]:
        numbers = range(len(self))
        chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)]
        jobs = [(self.render, self.crop, self.seed, chunk) for chunk in chunks]
        if workers == 0:
            self._studio()  # what is missing becomes a UserError
        return [shot for part in run_jobs(_make, jobs, workers) for shot in part]

    def _sample(self, shot: Shot, key: SampleKey) -> Sample:
        image, K = shot.image, shot.K
        rng = np.random.default_rng((self.seed, key.epoch, key.index, 0x51))
        if not shot.cropped:
            image, K = self._crop(shot, rng)
        if self.augment is not None:
            image = augmentation.augment_image(np.ascontiguousarray(image), self.augment, rng)
        crowd = _TRAIN_CROWD if self._shots is None else _TEST_CROWD
        view, numbers = View(image, K, shot.R, shot.t), (crowd, 0, key.index)
        return make_sample([view], shot.joints, False, self.data.image_size, numbers)

    def _crop(self, shot: Shot, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The square around a person whom the frame cuts off, black outside, as a box gives it."""
        low, high, shift = self.crop
        centre, side = transforms.square_crop(shot.boxes, rng.uniform(low, high))
        centre = centre + side * rng.uniform(-shift, shift, 2)
        K, turn = transforms.crop_camera(shot.K, centre, side, self.data.image_size)
        return transforms.warp(shot.image, shot.K, K, turn, self.data.image_size), K


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A missing extra or driver becomes a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"data.kind: rendered needs the render extra ({error}): make render installs it"
        ) from None
    except RuntimeError as error:
        raise UserError(f"data.kind: rendered: {error}") from None


@functools.lru_cache(maxsize=2)
def _open_studio(process: int, render: RenderConfig, crop: Crop) -> Studio:
    """The studio of a process; an OpenGL context does not survive a fork."""
    return Studio(render, crop=crop)


def _make(job: tuple[RenderConfig, Crop, int, range]) -> list[Shot]:
    """Makes some test images."""
    render, crop, seed, numbers = job
    studio = _open_studio(os.getpid(), render, crop)
    return studio.shoot([(seed, _TEST_CROWD, number) for number in numbers])
