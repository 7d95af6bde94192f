"""Rendering in several processes. Each draws with one thread, and none is forked: a process that
has drawn must not fork."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import cv2
import torch

Job, Result = TypeVar("Job"), TypeVar("Result")


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
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
