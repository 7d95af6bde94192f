"""Threads of a CPU, where small operations are faster on one; devices; processes (torchrun)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

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


# --- one process or several (torchrun) ------------------------------------------------------------

_FAILED = "ptri/failed"  # in the store: how many processes have failed


class World(NamedTuple):
    """This process among all of the run."""

    rank: int
    size: int
    device: torch.device
    store: dist.Store | None = None  # what all processes can read; None where there is but one

    @property
    def first(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @property
    def failing(self) -> bool:
        """Whether the action of `together` has failed in some process: there is no use to go on."""
        return self.store is not None and self.store.add(_FAILED, 0) > 0


ALONE = World(0, 1, torch.device("cpu"))


@contextmanager
def joined() -> Iterator[World]:
    """Joins the process group that ``torchrun`` describes; without one the process stays alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    # One process validates alone while the others wait, hence the long timeout.
    timeout = timedelta(hours=6)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout, world_size=size, rank=rank, store=store)
    try:
        yield World(rank, size, ALONE.device, store)
    finally:
        dist.destroy_process_group()


def placed(world: World, device: str) -> World:
    """The process on the device that ``run.device`` names; of several each takes its own GPU.

    Raises:
        UserError: no such device on this machine.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0)) if world.size > 1 else None
    target = choose_device(device, local_rank)
    if target.type == "cuda" and world.size > 1:
        torch.cuda.set_device(target)
    return world._replace(device=target)


def together(world: World, action: Callable[[], Any]) -> Any:
    """Runs an action in all processes, which wait for each other, and returns its value.

    Where it fails in one, all end, and the first process says why, once. A long action looks at
    `World.failing` now and then.

    Raises:
        UserError: the action's in any process; in the first one.
        SystemExit: in the others.
    """
    value = message = None
    try:
        value = action()
    except UserError as error:
        if world.size == 1:
            raise
        message = str(error)
        world.store.add(_FAILED, 1)
    messages = [text for text in gather(world, message) if text is not None]
    if messages and not world.first:
        time.sleep(1)  # torchrun ends all as soon as one ends, and the first must have spoken
        raise SystemExit(2)
    if messages:
        raise UserError(messages[0])
    return value


def on_first(world: World, action: Callable[[], Any]) -> None:
    """Runs an action in the first process while the others wait; as `together`."""
    together(world, lambda: action() if world.first else None)


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
