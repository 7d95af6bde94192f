"""Time of calls, on the clock and of the processor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call."""

    name: str
    fastest: float
    median: float
    processor: float  # least processor time: other processes add to the clock's time, not to this
    repeats: int


@torch.no_grad()
def time_calls(
    calls: dict[str, Callable[[], object]], repeats: int, seconds: float = math.inf
) -> list[Timing]:
    """Times all calls in turn, round after round, so that a disturbance does not meet one alone.

    Args:
        repeats: rounds after one that warms up. seconds: no round starts after this much time.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    for _ in range(repeats):
        for name, call in calls.items():
            start, before = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - before)
        if time.perf_counter() > end:
            break
    return [
        Timing(name, min(taken), median(taken), min(processor[name]), len(taken))
        for name, taken in wall.items()
    ]
