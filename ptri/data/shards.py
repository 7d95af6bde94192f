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
from typing import BinaryIO

import numpy as np
from torch.utils.data import Dataset

from ptri.config import Config
from ptri.data import transforms
from ptri.data.multiview import SampleKey, cut_view, make_sample
from ptri.errors import UserError
from ptri.structures import Sample


class Shards(Dataset):
    """Samples of one view, without a leading B; takes `SampleKey` as `MultiView` does.

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
        root = Path(data.root if train else data.test_root or data.root)
        # The shards S<subject>-<number>.tar, each with its subject.
        self.shards = [(p, s) for s in subjects for p in sorted(root.glob(f"S{s}-*.tar"))]
        if not self.shards:
            names = ", ".join(f"S{number}-*.tar" for number in subjects)
            raise UserError(
                f"data.root: {root}: none of {names}; make shards with scripts/render_people.py "
                f"--mode single --shard-size 1000, or correct the path or the subjects"
            )
        items = [row for shard, (path, _) in enumerate(self.shards) for row in _find(shard, path)]
        items = items[:: data.train_every if train else data.test_every]
        # (N, 5): the shard, and where in it the image and the truth of each sample begin and end
        self._items = np.array(items, np.int64)
        self.num_views = np.ones(len(items), np.int64)
        self.scene = np.zeros(len(items), np.int64)  # one for all

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        rng = np.random.default_rng((self.seed, key.epoch, key.index))
        shard, *ends = self._items[key.index].tolist()
        path, subject = self.shards[shard]
        with open(path, "rb") as file:
            image, text = (_read(file, *ends[i : i + 2]) for i in (0, 2))
        truth = _parse(path, text)
        joints = np.array(truth["h36m17"], np.float64)
        camera = tuple(np.array(truth[name], np.float64) for name in ("K", "R", "t"))
        read = functools.partial(transforms.decode_image, image, path)
        flip = self.augment is not None and rng.random() < self.augment.flip
        box = np.array(truth["box"])
        part = cut_view(read, camera, box, joints, self.data, self.augment, rng)
        return make_sample([part], joints, flip, self.data.image_size, (subject, 0, key.index))


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _parse(path: Path, text: bytes) -> dict:
    try:
        truth = json.loads(text)
        missing = {"K", "R", "t", "h36m17", "box"} - set(truth)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged truth ({error}); make the shard again") from None
    if missing:
        raise UserError(f"{path}: the truth lacks {', '.join(sorted(missing))}; make it again")
    return truth


def _find(shard: int, path: Path) -> list[tuple[int, ...]]:
    """A row of `Shards._items` for each sample of a shard."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                place = member.offset_data, member.offset_data + member.size
                samples.setdefault(key, {})[kind] = place
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a whole shard ({error}); copy or make it again") from None
    for key, parts in samples.items():
        if not {"jpg", "json"} <= parts.keys():
            raise UserError(f"{path}: sample {key} lacks its jpg or json; make the shard again")
    return [(shard, *parts["jpg"], *parts["json"]) for parts in samples.values()]
