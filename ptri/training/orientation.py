"""The trunk's orientation, told by every coarse pixel, as a second task while training.

The side of a limb is which side of the image it is on, turned round when the person is seen from
behind: a parity, whose gradient vanishes as long as neither of its parts is known. Telling the
orientation is no parity, and once pixels know it, sides follow (measured in docs/network2d.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.geometry.rotations import upright_axes
from ptri.skeleton import H36M17
from ptri.structures import constant

LEVELS = (2, 3)  # of the backbone's maps: strides 16 and 32
_LEFT, _RIGHT = (
    tuple(H36M17.joints.index(f"{side}_{name}") for name in ("hip", "shoulder"))
    for side in ("left", "right")
)
_THORAX = H36M17.joints.index("thorax")


class Orientation(nn.Module):
    """Left, up and forward of the trunk in the camera's frame, from each pixel of coarse maps."""

    def __init__(self, channels: list[int]) -> None:
        """channels: of the backbone's maps at strides 4, 8, 16, 32."""
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(channels[level], 9, 1) for level in LEVELS)

    def forward(self, maps: list[Tensor], joints3d: Tensor, joints2d: Tensor, size: int) -> Tensor:
        """Mean square error of the three unit vectors over the pixels on the person, (N,).

        Args:
            maps: (N, C_i, H / s_i, W / s_i). joints3d: (N, 17, 3) in the camera's frame; a person
                whose trunk is not known (NaN) counts 0.
            joints2d: (N, 17, 2) px of the square image with sides of `size` px.
        """
        truth = trunk_frame(joints3d).flatten(1)  # (N, 9)
        known = torch.isfinite(truth).all(1)
        truth = truth.masked_fill(~known[:, None], 0.0)
        unknown = joints2d.isnan()
        low = joints2d.masked_fill(unknown, torch.inf).amin(1).clamp(0, size - 1)
        high = joints2d.masked_fill(unknown, -torch.inf).amax(1).clamp(0, size - 1)
        high = torch.maximum(high, low + 1)
        errors = []
        for layer, level in zip(self.maps, LEVELS):
            told = layer(maps[level]).float()
            height, width = told.shape[-2:]
            inside = _covered(low[:, 1], high[:, 1], height, size)[:, :, None]
            inside = inside * _covered(low[:, 0], high[:, 0], width, size)[:, None, :]
            square = (told - truth[:, :, None, None]).square().mean(1)  # (N, h, w)
            errors.append((square * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1e-6))
        return 3 * torch.stack(errors).mean(0) * known


def trunk_frame(joints: Tensor) -> Tensor:
    """Unit vectors to the trunk's left, up and forward, (..., 3, 3) as rows, of (..., 17, 3)."""
    left, right = (constant(side, joints.device) for side in (_LEFT, _RIGHT))
    left = joints[..., left, :].sum(-2) - joints[..., right, :].sum(-2)
    return upright_axes(left, joints[..., _THORAX, :] - joints[..., H36M17.root, :])


def _covered(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
    """The share (N, cells) of each cell of `size` px that lies from low to high (N,) px."""
    edge = torch.arange(cells, device=low.device) * (size / cells)
    step = size / cells
    return ((high[:, None] - edge).clamp(0, step) - (low[:, None] - edge).clamp(0, step)) / step
