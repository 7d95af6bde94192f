"""Loaders whose order depends on the seed and the epoch only.

Neither worker processes nor the number of ranks change what a training step sees: the epoch's order
is cut into global batches, and each rank takes its share of every one.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ptri.data.multiview import SampleKey
from ptri.errors import UserError

WORKER_GRACE = 20  # s that a loader process works on after SIGTERM


def num_batches(dataset: Dataset, batch_size: int) -> int:
    """Global batches of one pass over a data set; see `epoch_order`."""
    return max(1, len(dataset) // batch_size)


def epoch_order(length: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The items of an epoch's global batches, (steps, batch_size) int64.

    A permutation; the remainder that fills no batch is left to other epochs. A data set smaller
    than one batch is repeated to fill it.
    """
    order = np.random.default_rng((seed, epoch, 0x0EDE)).permutation(length)
    steps = max(1, length // batch_size)
    return np.resize(order, (steps, batch_size))


@dataclasses.dataclass
class _TrainKeys:
    """Lists of keys: this rank's share of the global batches ``steps``, counted over all passes."""

    dataset: Dataset
    batch_size: int
    seed: int
    rank: int
    world: int
    num_views: tuple[int, int]
    steps: range = range(0)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.batch_size // self.world
        current = None
        for step in self.steps:
            epoch, number = divmod(step, num_batches(self.dataset, self.batch_size))
            if epoch != current:
                order = epoch_order(len(self.dataset), self.batch_size, self.seed, epoch)
                current = epoch
            batch = order[number]
            # A batch is one tensor: every sample has as many views.
            available = int(self.dataset.num_views[batch].min())
            low, high = self.num_views
            high = min(high or available, available)
            rng = np.random.default_rng((self.seed, epoch, number, 0x71E5))
            count = int(rng.integers(min(low, high), high + 1))
            items = batch[self.rank * share : (self.rank + 1) * share]
            yield [SampleKey(int(item), epoch, count) for item in items]


class TrainLoader:
    """A run's batches; keeps its worker processes."""

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
            batch_size: of all ranks together, a multiple of their number.
            num_views: fewest and most views of a batch; 0: as many as there are.
        """
        self.dataset = dataset
        self._keys = _TrainKeys(dataset, batch_size, seed, rank, world, num_views)
        self._loader = _loader(dataset, self._keys, workers, persistent=True)

    def between(self, first: int, end: int) -> Iterator[Any]:
        """This rank's collated batches ``first`` to ``end - 1``, counted over all passes."""
        self._keys.steps = range(first, end)
        return _plain_errors(self._loader)


class EvaluationLoader:
    """Every item exactly once and in order, in batches that never cross a scene's border.

    Several processes share the scenes; the batches are the same, however many there are.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        """
        Args:
            dataset: items with ``scene`` (N,), a number that changes where a new scene begins; the
                items of a scene have equally many views.
            batch_size: at most so many items at once.
            rank, world: this process, which takes its share of the scenes, among so many.
        """
        borders = np.flatnonzero(np.diff(dataset.scene)) + 1
        scenes = np.split(np.arange(len(dataset)), borders)
        # From the longest down, each to the process that has least.
        shares: list[list[int]] = [[] for _ in range(world)]
        loads = [0] * world
        for number in sorted(range(len(scenes)), key=lambda number: -len(scenes[number])):
            process = loads.index(min(loads))
            shares[process].append(number)
            loads[process] += len(scenes[number])
        self.num_items = loads[rank]
        self._scenes = [
            [part.tolist() for part in np.split(scene, range(batch_size, len(scene), batch_size))]
            for scene in (scenes[number] for number in sorted(shares[rank]))
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


def _loader(dataset, batches, workers: int, persistent: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        persistent_workers=persistent and workers > 0,
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
