"""Damping of the Levenberg-Marquardt method, for batches of problems that share no step."""

from __future__ import annotations

import torch
from torch import Tensor

START, SMALLEST, LARGEST = 1e-3, 1e-9, 1e6
LESS, MORE = 0.2, 8.0  # factors after a step that was taken, and after one that was not


def start_damping(like: Tensor) -> Tensor:
    """The damping of every problem at the start, of a tensor's shape."""
    return torch.full_like(like, START)


def next_damping(damping: Tensor, better: Tensor) -> Tensor:
    """The damping after steps that were better, and taken, or were not."""
    return torch.where(better, damping * LESS, damping * MORE).clamp(SMALLEST, LARGEST)
