"""What training asks of the machine: signals to stop, memory, seeds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
from collections.abc import Iterator
from types import FrameType

import numpy as np
import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h

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
