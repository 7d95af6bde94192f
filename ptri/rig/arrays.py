"""Arrays that users give, as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptri.errors import UserError


def as_tensor(
    value, name: str, device, shape: tuple[int, ...] | None = None, what: str = ""
) -> Tensor:
    """Any array of real numbers as float64, of a shape where one is given; ``what`` says whose."""
    try:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}: not an array of numbers ({' '.join(str(error).split())[:80]}); give a NumPy "
            "array or a torch tensor"
        ) from None
    if value.dtype == torch.bool or value.is_complex():
        raise UserError(f"{name}: expected real numbers, got {value.dtype}")
    if shape is not None and value.shape != shape:
        hint = "; repeat it for every view" if value.shape == (3, 3) else ""
        raise UserError(f"{name}: expected shape {shape}, {what}, got {tuple(value.shape)}{hint}")
    try:
        return value.detach().to(device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:  # no such device
        raise UserError(f"device: {str(device)!r}: {str(error).splitlines()[0][:120]}") from None


def picture_sizes(size, num_views: int, device: torch.device | str = "cpu") -> Tensor:
    """Width and height (V, 2) px of pictures.

    Raises:
        UserError: a size that is none.
    """
    size = as_tensor(size, "size", device)
    if size.shape not in ((2,), (num_views, 2)) or not bool(((size >= 1) & (size < 1e6)).all()):
        raise UserError(
            "size: expected width and height in px, of all views (2,) or of each "
            f"({num_views}, 2), got {size.tolist()!r:.80}"
        )
    return size.expand(num_views, 2)
