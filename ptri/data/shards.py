"""Single images in WebDataset shards, for 2D training: `data.kind: shards`.

Shards (docs/rendered_people.md) are plain tar files, named after their subject. Their headers tell
where each image and its truth lie, so samples are read in any order, and a resumed run goes on
where it was, which a stream could not.
"""

from __future__ import annotations

import functools
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from ptri.config import Config
from ptri.data import transforms
from ptri.data.h36m import SampleKey, cut_view, make_sample
from ptri.errors import UserError
from ptri.structures import Sample


class _Place(NamedTuple):
    """Where a member's bytes are."""

    shard: int
    offset: int
    size: int


class Shards(Dataset):
    """Samples of one view, without a leading B; takes `SampleKey` like `ptri.data.h36m.H36M`.

    Args:
        config: the sections ``data`` (root: the folder of the shards; the subjects and
            train_every / test_every; image_size, crop_scale), ``augment`` and the run's seed.
        split: "train" or "test" (without augmentation).

    Raises:
        UserError: no shards of the split's subjects, or damaged ones.
    """

    def __init__(self, config: Config, split: str) -> None:
        data = config.data
        train = split == "train"
        subjects = data.train_subjects if train else data.test_subjects
        self.data, self.seed = data, config.run.seed
        self.augment = config.augment if train else None
        root = data.root if train else data.test_root or data.root
        self.paths, self.subjects = _find(Path(root), subjects)
        items = [pair for shard in range(len(self.paths)) for pair in self._members(shard)]
        items = items[:: data.train_every if train else data.test_every]
        self._items = np.array(items, np.int64)  # (N, 2, 3): jpg and json of each sample
        self.num_views = np.ones(len(items), np.int64)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        image, text = (_Place(*place.tolist()) for place in self._items[key.index])
        path = self.paths[image.shard]
        truth = self._truth(path, self._read(text))
        joints = np.array(truth["h36m17"], np.float64)
        camera = tuple(np.array(truth[name], np.float64) for name in ("K", "R", "t"))
        read = functools.partial(transforms.decode_jpeg, self._read(image), path)
        flip = self.augment is not None and rng.random() < self.augment.flip
        box = np.array(truth["box"])
        part = cut_view(read, camera, box, joints, self.data, self.augment, rng)
        numbers = self.subjects[image.shard], 0, key.index
        return make_sample([part], joints, flip, self.data.image_size, numbers)

    def _members(self, shard: int) -> list[tuple[_Place, _Place]]:
        """The places of the image and the truth of a shard's samples."""
        path, samples = self.paths[shard], {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    place = _Place(shard, member.offset_data, member.size)
                    samples.setdefault(key, {})[kind] = place
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{path}: not a whole shard ({error}); copy or make it again") from None
        for key, parts in samples.items():
            if not {"jpg", "json"} <= parts.keys():
                raise UserError(f"{path}: sample {key} lacks its jpg or json; make the shard again")
        return [(parts["jpg"], parts["json"]) for parts in samples.values()]

    def _read(self, place: _Place) -> bytes:
        with open(self.paths[place.shard], "rb") as file:
            file.seek(place.offset)
            return file.read(place.size)

    @staticmethod
    def _truth(path: Path, text: bytes) -> dict:
        try:
            truth = json.loads(text)
            missing = {"K", "R", "t", "h36m17", "box"} - set(truth)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged truth ({error}); make the shard again") from None
        if missing:
            raise UserError(f"{path}: the truth lacks {', '.join(sorted(missing))}; make it again")
        return truth


def _find(root: Path, subjects: list[int]) -> tuple[list[Path], list[int]]:
    """The shards S<subject>-<number>.tar of some subjects, and each one's subject."""
    pairs = [
        (path, number) for number in subjects for path in sorted(root.glob(f"S{number}-*.tar"))
    ]
    if not pairs:
        names = ", ".join(f"S{number}-*.tar" for number in subjects)
        raise UserError(
            f"data.root: {root}: none of {names}; make shards with scripts/render_people.py "
            f"--mode single --shard-size 1000, or correct the path or the subjects"
        )
    paths, numbers = zip(*pairs)
    return list(paths), list(numbers)
