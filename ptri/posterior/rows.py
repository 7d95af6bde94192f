"""Samples of many rigs packed into rows that share a mode, so that few of them are padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROW = 32  # samples of a mode that are worked out at once


class Rows(NamedTuple):
    """Samples of B rigs, packed into N rows of ``ROW`` that share a mode."""

    sample: Tensor  # (ROW, N) numbers of the samples among all M B
    mode: Tensor  # (N,) number of the row's mode among all B K
    place: Tensor  # (M B,) where each sample is in (ROW, N), flat


def pack(owner: Tensor, num_modes: int) -> Rows:
    """Packs samples by the mode (M, B) that each belongs to; the last of a mode fill its row."""
    B = owner.shape[1]
    mode = (torch.arange(B, device=owner.device) * num_modes + owner).flatten()  # (M B,)
    order = mode.argsort(stable=True)
    # Not bincount: it asks the GPU for the largest number. How many rows there are must be asked.
    count = torch.zeros(B * num_modes, dtype=torch.int64, device=owner.device)
    count = count.scatter_add(0, mode, torch.ones_like(mode))
    rows = (count + ROW - 1) // ROW
    numbers, num_rows = torch.arange(len(rows), device=owner.device), int(rows.sum())
    row_mode = numbers.repeat_interleave(rows, output_size=num_rows)  # (N,)
    row = torch.arange(len(row_mode), device=owner.device) - (rows.cumsum(0) - rows)[row_mode]
    inside = row * ROW + torch.arange(ROW, device=owner.device)[:, None]  # (ROW, N)
    inside = torch.minimum(inside, count[row_mode] - 1)
    sample = order[(count.cumsum(0) - count)[row_mode] + inside]
    place = torch.empty_like(order)
    place[sample.flatten()] = torch.arange(sample.numel(), device=owner.device)
    return Rows(sample, row_mode, place)
