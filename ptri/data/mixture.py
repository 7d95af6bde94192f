"""Several data sets of single views as one, each with its share: `data.mix`."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from ptri.config import Config, DataConfig
from ptri.data.multiview import SampleKey
from ptri.errors import UserError
from ptri.fields import build, convert
from ptri.structures import Sample

_OF_ALL = ("mix", "image_size", "workers")  # what a source cannot have for itself


class Mixture(Dataset):
    """Samples of several data sets; takes `SampleKey` like them.

    A pass over the mixture holds each data set's share to within a sample. Each data set goes
    through passes of its own, one after another and each in an order of its own, so that all of its
    items are seen equally often whatever its share. All depends on (seed, epoch, index) only.
    """

    def __init__(
        self,
        parts: Sequence[Dataset],
        shares: Sequence[float] | None = None,
        length: int = 0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            parts: data sets of single views.
            shares: of a pass, relative to each other; None: the data sets' sizes.
            length: samples in a pass; 0: as many as all data sets have.
            seed: of the orders.
        """
        sizes = [len(part) for part in parts]
        weights = np.cumsum(shares or sizes)
        length = length or sum(sizes)
        self.parts, self.seed = parts, seed
        self.ends = np.rint(weights / weights[-1] * length).astype(int).tolist()
        self.num_views = np.ones(length, np.int64)

    def __len__(self) -> int:
        return len(self.num_views)

    def place(self, key: SampleKey) -> tuple[int, SampleKey]:
        """The number of the data set behind a key, and its own key."""
        if not 0 <= key.index < len(self):
            raise IndexError(key.index)
        number = bisect.bisect_right(self.ends, key.index)
        first = self.ends[number - 1] if number else 0
        count, length = self.ends[number] - first, len(self.parts[number])
        # In the data set's own passes, on from where the mixture's last pass left it.
        epoch, position = divmod(key.epoch * count + key.index - first, length)
        order = _order(self.seed, number, epoch, length)
        return number, SampleKey(int(order[position]), epoch, key.num_views)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Sample]:
        places = [self.place(SampleKey.of(key)) for key in keys]
        samples: dict[int, Sample] = {}
        for number in sorted({number for number, _ in places}):
            part = self.parts[number]
            rows = [row for row, (chosen, _) in enumerate(places) if chosen == number]
            own = [places[row][1] for row in rows]
            many = getattr(part, "__getitems__", None)  # faster where there is one
            samples |= zip(rows, many(own) if many else map(part.__getitem__, own))
        return [samples[row] for row in range(len(keys))]


@functools.lru_cache(maxsize=8)  # of large data sets only the pass that is begun and the next
def _order(seed: int, number: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, number, epoch, 0x313)).permutation(length)


def sources(config: Config) -> tuple[list[Config], list[float] | None]:
    """The configuration of each source of ``data.mix``, and their shares; None: by their sizes.

    A source has the settings of section ``data`` but for those that it gives itself.

    Raises:
        UserError: an unknown setting or a wrong value; a share that is no positive number, or of
            some sources only.
    """
    given = [dict(source) for source in config.data.mix]
    shares = [source.pop("share", None) for source in given]
    if any(share is None for share in shares) and any(share is not None for share in shares):
        raise UserError("data.mix: give each source a share, or none: then sizes decide")
    configs = []
    for number, source in enumerate(given):
        where = f"data.mix[{number}]"
        for key in _OF_ALL:
            if key in source:
                raise UserError(f"{where}: {key}: one for all; give it in section data")
        if shares[number] is not None:
            shares[number] = convert(shares[number], float, f"{where}.share")
            if not 0 < shares[number] < np.inf:
                raise UserError(f"{where}.share: {shares[number]}; expected a number above 0")
        data = build(DataConfig, {**vars(config.data), **source, "mix": []}, f"{where}: ")
        # Of equal images each source makes others.
        run = dataclasses.replace(config.run, seed=config.run.seed + number)
        configs.append(dataclasses.replace(config, data=data, run=run))
    return configs, None if shares[0] is None else shares
