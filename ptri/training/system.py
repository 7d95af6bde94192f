"""What training asks of the machine: processes, signals to stop, memory, seeds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ptri.errors import UserError
from ptri.system import choose_device

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h

# --- one process or several (torchrun) ------------------------------------------------------------


class World(NamedTuple):
    """This process among all of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0


@contextlib.contextmanager
def started(device: str) -> Iterator[World]:
    """Joins the process group that ``torchrun`` describes, where each process takes its own GPU.

    Without one it stays alone, on the device that ``run.device`` names.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    target = choose_device(device, local_rank if size > 1 else None)
    if size == 1:
        yield World(0, 1, target)
        return
    if target.type == "cuda":
        torch.cuda.set_device(target)
    # The first process validates alone while the others wait, hence the long timeout.
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), target)
    finally:
        dist.destroy_process_group()


def on_first(world: World, action: Callable[[], Any]) -> None:
    """Runs the action in the first process while the others wait; all raise its UserError."""
    message = None
    try:
        if world.first:
            action()
    except UserError as error:
        message = str(error)
    message = gather(world, message)[0]
    if message is not None:
        raise UserError(message)


def total(world: World, values: Tensor) -> Tensor:
    """Sum of the values over all processes."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def largest(world: World, value: int) -> int:
    """Largest of the processes' values; all wait for each other."""
    return max(gather(world, value))


def gather(world: World, value: Any) -> list[Any]:
    """Every process's value, in order of rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


# --- Ctrl-C and SIGTERM ---------------------------------------------------------------------------


class StopRequested(Exception):
    """The user or the machine asked the run to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.name = signal.Signals(signum).name
        self.exit_code = 128 + signum  # 130 after SIGINT, 143 after SIGTERM


class StopSignals:
    """While open, SIGINT and SIGTERM set `received`; a second Ctrl-C interrupts at once.

    Under ``torchrun``, which sends a signal more than once, only the first one counts.
    """

    def __init__(self) -> None:
        self.received = 0
        self._immediate = False
        self._owner = os.getpid()
        self._alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal raises StopRequested where it strikes: for work that can be repeated."""
        if self.received:
            raise StopRequested(self.received)
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a process forked with this handler
        again, self.received = self.received, self.received or signum
        if self._immediate:
            self._immediate = False
            raise StopRequested(signum)
        if again and self._alone and signum == signal.SIGINT:
            raise KeyboardInterrupt


# --- memory and random generators -----------------------------------------------------------------


def keep_freed_memory() -> None:
    """Makes glibc reuse large freed blocks; does nothing on other systems.

    By default every activation above 32 MB is a fresh mapping whose pages the kernel must clear
    first. On two AVX2 cores this makes a training step of the 2D network 1.2 to 1.7 times faster
    (docs/decisions.md); the process keeps its peak memory until it ends.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def seed_everything(*numbers: int) -> None:
    """Seeds the global generators of Python, NumPy and torch from non-negative numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
