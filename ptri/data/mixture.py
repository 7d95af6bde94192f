"""Several data sets as one, for 2D training on Human3.6M and rendered people together."""

from __future__ import annotations

import bisect

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from ptri.data.h36m import SampleKey
from ptri.structures import Sample


class Mixture(ConcatDataset):
    """The items of all parts, one part after the other; takes `SampleKey` like its parts."""

    def __init__(self, parts: list[Dataset]) -> None:
        super().__init__(parts)
        self.num_views = np.concatenate([part.num_views for part in parts])

    def __getitem__(self, key: int | SampleKey) -> Sample:
        key = SampleKey.of(key)
        number = bisect.bisect_right(self.cumulative_sizes, key.index)
        part = self.datasets[number]
        return part[key._replace(index=key.index - self.cumulative_sizes[number] + len(part))]
