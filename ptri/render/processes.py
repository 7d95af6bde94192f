"""Rendering in several processes. Each draws with one thread, and none is forked: a process that
has drawn must not fork."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import torch


def run_jobs(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """The results of jobs, in order.

    Args:
        workers: processes; 0: this one.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of software OpenGL
    if workers == 0 or not jobs:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _start) as pool:
        yield from pool.imap(work, jobs)


def _start() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
