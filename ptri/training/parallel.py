"""One process or several (``torchrun``): rank, device and the few collectives the engine needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ptri.errors import UserError
from ptri.system import choose_device


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
    """Joins the process group that ``torchrun`` describes, or stays alone without one.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun each process takes its own GPU.
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
    message = [None]
    if world.first:
        try:
            action()
        except UserError as error:
            message = [str(error)]
    if world.size > 1:
        dist.broadcast_object_list(message, src=0)
    if message[0] is not None:
        raise UserError(message[0])


def total(world: World, values: Tensor) -> Tensor:
    """Sum of the values over all processes."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def largest(world: World, value: int) -> int:
    """Largest of the processes' values; all wait for each other."""
    return value if world.size == 1 else int(max(gather(world, value)))


def gather(world: World, value: Any) -> list[Any]:
    """Every process's value, in order of rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values
