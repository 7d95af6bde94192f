"""Random numbers for a batch in which every sample owns its stream, and noise over time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2048  # numbers fetched from each sample's generator at once


class Draws:
    """Uniform and normal draws (B, ...) where row i depends only on the i-th stream.

    Rows are therefore the same whatever batch, rank or worker they are drawn in, as long as the
    same shapes are asked for in the same order.
    """

    def __init__(self, generators: Sequence[np.random.Generator]):
        self.generators = list(generators)
        self._buffers = {"uniform": np.empty((len(generators), 0), np.float32)}
        self._buffers["normal"] = self._buffers["uniform"]

    @classmethod
    def from_seeds(cls, seeds: Sequence[tuple[int, ...]]) -> Draws:
        """One stream per tuple of non-negative integers, such as (seed, step, index)."""
        return cls([np.random.Generator(np.random.SFC64(list(seed))) for seed in seeds])

    @property
    def batch(self) -> int:
        return len(self.generators)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) in [low, high)."""
        return low + (high - low) * self._take("uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) standard normal."""
        return self._take("normal", shape)

    def sign(self, *shape: int) -> Tensor:
        """(B, *shape) of -1 and 1."""
        return 2.0 * (self.uniform(*shape) < 0.5) - 1.0

    def choice(self, num: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [0, num)."""
        return (self.uniform(*shape) * num).long().clamp_max(num - 1)

    def _take(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        count, buffer = math.prod(shape), self._buffers[kind]
        if buffer.shape[1] < count:
            size = max(_CHUNK, count)
            method = "random" if kind == "uniform" else "standard_normal"
            fresh = np.empty((self.batch, size), np.float32)
            for row, generator in zip(fresh, self.generators):
                getattr(generator, method)(out=row, dtype=np.float32)
            buffer = np.concatenate([buffer, fresh], axis=1)
        self._buffers[kind] = buffer[:, count:]
        return torch.from_numpy(buffer[:, :count].reshape(self.batch, *shape))


def ar1(white: Tensor, rho: float) -> Tensor:
    """White noise (B, T, ...) as AR(1) noise over T of the same variance, stationary.

    Args:
        rho: correlation between neighbouring frames.
    """
    return torch.einsum("ts,bs...->bt...", _ar1_factor(white.shape[1], rho, white.dtype), white)


@functools.cache
def _ar1_factor(num_frames: int, rho: float, dtype: torch.dtype) -> Tensor:
    lag = torch.arange(num_frames)
    power = rho ** (lag[:, None] - lag[None, :]).clamp_min(0).to(dtype)
    factor = torch.tril(power) * math.sqrt(max(1 - rho**2, 0.0))
    factor[:, 0] = power[:, 0]
    return factor
