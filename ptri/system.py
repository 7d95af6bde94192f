"""Threads of a CPU, where small operations are faster on one, and devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptri.errors import UserError

_LOCK = threading.Lock()
_INSIDE: dict[int, int] = {}  # Python threads within `one_thread`, and torch's threads outside it


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch's operations on the CPU on one thread, where they are hundreds of small ones.

    Two threads that meet after each of them made the rig posterior 1.4 to 2 times slower
    (docs/decisions.md). May be entered by several Python threads at once, and again from within.
    """
    caller = threading.get_ident()
    if caller in _INSIDE:
        yield
        return
    with _LOCK:
        # A new Python thread asks for the last setting when it first needs it, here at the latest:
        # 1 where another one is inside.
        before = torch.get_num_threads()
        before = _INSIDE[caller] = next(iter(_INSIDE.values()), before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            del _INSIDE[caller]
            torch.set_num_threads(before)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that ``run.device`` names.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"run.device: {name!r} is no device; use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda":
        index = device.index if local_rank is None else local_rank
        if not torch.cuda.is_available() or (index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"run.device: {name!r} (GPU {index or 0}) asked for, but torch sees "
                f"{torch.cuda.device_count()} GPUs; use run.device=cpu"
            )
        device = torch.device("cuda", index or 0)
    return device
