"""Loaders whose order depends on the seed and the epoch only.

Neither worker processes nor the number of ranks change what a training step sees: the epoch's order
is cut into global batches, and each rank takes its share of every one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ptri.data.h36m import SampleKey
from ptri.errors import UserError

WORKER_GRACE = 20  # s that a loader process works on after SIGTERM


def epoch_order(length: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The items of an epoch's global batches, (steps, batch_size) int64.

    A permutation; the remainder that fills no batch is left to other epochs. A data set smaller
    than one batch is repeated to fill it.
    """
    order = np.random.default_rng((seed, epoch, 0x0EDE)).permutation(length)
    steps = max(1, length // batch_size)
    return np.resize(order, (steps, batch_size))


class _TrainBatches(Sampler):
    """Lists of keys, this rank's share of each global batch from ``start_step`` on."""

    def __init__(self, views, batch_size, seed, rank, world, num_views) -> None:
        self.views, self.batch_size, self.seed = np.asarray(views), batch_size, seed
        self.rank, self.world, self.num_views = rank, world, num_views
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        return max(1, len(self.views) // self.batch_size) - self.start_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = epoch_order(len(self.views), self.batch_size, self.seed, self.epoch)
        share = self.batch_size // self.world
        for step in range(self.start_step, len(order)):
            batch = order[step]
            count = self._draw_views(step, int(self.views[batch].min()))
            items = batch[self.rank * share : (self.rank + 1) * share]
            yield [SampleKey(int(item), self.epoch, count) for item in items]

    def _draw_views(self, step: int, available: int) -> int:
        """How many views every sample of a step has: a batch is one tensor."""
        low, high = self.num_views
        high = min(high or available, available)
        rng = np.random.default_rng((self.seed, self.epoch, step, 0x71E5))
        return int(rng.integers(min(low, high), high + 1))


class TrainLoader:
    """Batches of an epoch; keeps its worker processes from epoch to epoch."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        num_views: tuple[int, int] = (1, 0),
    ) -> None:
        """
        Args:
            dataset: items with ``num_views`` (N,), how many views each has; takes `SampleKey`.
            batch_size: of all ranks together.
            num_views: fewest and most views of a batch; 0: as many as there are.

        Raises:
            UserError: the batch cannot be shared equally.
        """
        if batch_size % world:
            raise UserError(
                f"train.batch_size: {batch_size} cannot be shared by {world} processes; "
                "choose a multiple"
            )
        views = dataset.num_views
        self._batches = _TrainBatches(views, batch_size, seed, rank, world, num_views)
        self._loader = _loader(dataset, self._batches, workers)

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return max(1, len(self._batches.views) // self._batches.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yields this rank's collated batches of an epoch, from ``start_step`` on."""
        self._batches.epoch, self._batches.start_step = epoch, start_step
        if start_step < len(self):
            yield from _plain_errors(self._loader)

    def between(self, first: int, end: int) -> Iterator[Any]:
        """Batches ``first`` to ``end - 1``, counted over all passes over the data."""
        while first < end:
            epoch, start_step = divmod(first, len(self))
            count = min(end - first, len(self) - start_step)
            yield from islice(self.epoch(epoch, start_step), count)
            first += count


class EvaluationLoader:
    """Every item exactly once and in order, in batches that never cross a scene's border."""

    def __init__(self, dataset: Dataset, batch_size: int, workers: int = 0) -> None:
        """
        Args:
            dataset: items with ``scene`` (N,), a number that changes where a new scene begins; the
                items of a scene have equally many views.
            batch_size: at most so many items at once.
        """
        borders = np.flatnonzero(np.diff(dataset.scene)) + 1
        self._scenes = [
            [
                scene[start : start + batch_size].tolist()
                for start in range(0, len(scene), batch_size)
            ]
            for scene in np.split(np.arange(len(dataset)), borders)
        ]
        batches = [batch for scene in self._scenes for batch in scene]
        self._loader = _loader(dataset, batches, workers, persistent=False)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return _plain_errors(self._loader)

    def scenes(self) -> Iterator[Iterator[tuple[list[int], Any]]]:
        """Yields each scene as an iterator of its items' indices and the batch of them.

        A scene is read to its end before the next one is asked for.
        """
        batches = iter(self)
        for scene in self._scenes:
            yield zip(scene, batches)


def _loader(
    dataset, batches: Sampler | list[list[int]], workers: int, persistent: bool = True
) -> DataLoader:
    options: dict[str, Any] = {}
    if workers > 0:
        options = {"prefetch_factor": 4, "persistent_workers": persistent}
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        **options,
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C and torchrun's SIGTERM go to the whole process group; the training process honours
    # them after a whole step, for which it may need this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))


def _plain_errors(loader: DataLoader) -> Iterator[Any]:
    """Passes on a worker's UserError without the traceback that the DataLoader writes into it."""
    try:
        yield from loader
    except UserError as error:
        message = str(error)
        if "Traceback" in message:
            message = message.strip().splitlines()[-1].partition("UserError: ")[2]
        raise UserError(message) from None
