"""Several data sets as one, for 2D training on Human3.6M and rendered people together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from ptri.data.h36m import SampleKey
from ptri.structures import Sample


class Mixture(Dataset):
    """The items of all parts, one part after the other; takes `SampleKey` like its parts."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        """
        Args:
            parts: data sets with ``num_views`` (N,), how many views each item has.
        """
        self.parts = list(parts)
        self.num_views = np.concatenate([part.num_views for part in self.parts])
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        if not 0 <= key.index < len(self):
            raise IndexError(key.index)
        number = int(np.searchsorted(self._ends, key.index, side="right"))
        part = self.parts[number]
        return part[key._replace(index=int(key.index - self._ends[number] + len(part)))]
