"""Seeds of the global random generators, and the names of the samples in a batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(*numbers: int) -> None:
    """Seeds the global generators of Python, NumPy and torch from non-negative numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def sample_names(batch: Any, chosen: Tensor) -> list[str]:
    """What the chosen samples of a batch are called, as far as the batch knows."""
    fields = {key: _find(batch, key) for key in ("subject", "action", "frame")}
    known = {key: value.flatten() for key, value in fields.items() if isinstance(value, Tensor)}
    indices = chosen.nonzero().flatten().tolist()
    if not known or any(len(value) != len(chosen) for value in known.values()):
        return [f"{index} of the batch" for index in indices]
    return [", ".join(f"{key} {int(v[index])}" for key, v in known.items()) for index in indices]


def _find(batch: Any, name: str) -> Any:
    """The entry of that name in nested dicts and tuples, None where there is none."""
    entries = batch._asdict() if hasattr(batch, "_asdict") else batch
    if isinstance(entries, dict):
        if name in entries:
            return entries[name]
        entries = entries.values()
    elif not isinstance(entries, (list, tuple)):
        return None
    return next((found for item in entries if (found := _find(item, name)) is not None), None)
