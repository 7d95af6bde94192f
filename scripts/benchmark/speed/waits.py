"""Host synchronisations: places where the CPU waits until the GPU has done all that it was given.

They cost more than the transfer: the CPU cannot give the GPU more work meanwhile, and small
operations are bound by how fast it does.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

import ptri

PACKAGE = Path(ptri.__file__).parent


class Trace:
    """What was seen on a device."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()  # by source line and kind
        self.operators = 0  # called on tensors of the device; 0: not counted


def caller() -> str:
    """The innermost line of ptri that runs, as "rig/starts.py:58"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and path.name != "structures.py":  # which maps over trees
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside ptri"


@contextlib.contextmanager
def cuda_waits() -> Iterator[Trace]:
    """Within, PyTorch tells of every wait for a CUDA device."""
    trace, before = Trace(), torch.cuda.get_sync_debug_mode()

    def note(*_: object, **__: object) -> None:
        trace.waits[caller(), "synchronisation"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield trace
        finally:
            torch.cuda.set_sync_debug_mode(before)
