"""The network of both MoveNets: MobileNetV2, a small feature pyramid and CenterNet's heads.

MobileNetV2 (Sandler et al. 2018, table 2) of width 1.75 or 1.5 reduces the picture 32 times; the
pyramid (Lin et al. 2017) brings its maps back to stride 4; each head (Zhou et al. 2019, "Objects as
points") is a separable convolution. BatchNorm is already merged into the weights that Google
published.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # picture px per cell of a head's map
COARSEST = 32  # the sides of a picture are multiples of it
# Input over 255 grey levels is -1 to 1; the factor as the published graph rounds it to float16.
PIXEL_SCALE = 0.007843017578125
# MobileNetV2's stages: expansion, channels at width 1, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),  # stride 4
    (6, 32, 3, 2),  # stride 8
    (6, 64, 4, 2),  # stride 16
    (6, 96, 3, 1),
    (6, 160, 3, 2),  # stride 32
    (6, 320, 1, 1),
)  # fmt: skip
STEM, TOP = 32, 1280  # channels before the stages (at width 1) and after them (at any width)
# Stage whose output feeds the pyramid at strides 4, 8 and 16, and the pyramid's channels there.
LATERALS = ((1, 24), (2, 32), (3, 64))
HEAD_WIDTH = 96


class CenterNet(nn.Module):
    """Pictures to one map of stride 4 for each head."""

    def __init__(self, width: float, heads: Mapping[str, int]) -> None:
        """
        Args:
            width: factor on MobileNetV2's channels.
            heads: channels of each head's map, by name.
        """
        super().__init__()
        channels = _channels(STEM, width)
        self.stem = Convolution(3, channels, 3, 2)
        stages, self.laterals = [], nn.ModuleList()
        for number, (expansion, outputs, count, stride) in enumerate(STAGES):
            outputs = _channels(outputs, width)
            blocks = [Block(channels, outputs, expansion, stride)]
            blocks += [Block(outputs, outputs, expansion, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = outputs
            if number in dict(LATERALS):
                self.laterals.append(nn.Conv2d(channels, dict(LATERALS)[number], 1))
        self.stages = nn.ModuleList(stages)
        self.top = Convolution(channels, TOP, 1)
        self.laterals.append(nn.Conv2d(TOP, LATERALS[-1][1], 1))
        finest, *coarser = [count for _, count in LATERALS]
        steps = zip(coarser, [finest, *coarser])  # from stride 8 to 4, from 16 to 8
        self.refine = nn.ModuleList(
            Separable(inputs, outputs) for inputs, outputs in [(finest, finest), *steps]
        )
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    Separable(finest, HEAD_WIDTH), nn.Conv2d(HEAD_WIDTH, outputs, 1)
                )
                for name, outputs in heads.items()
            }
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """
        Args:
            pictures: (N, 3, H, W) RGB, 0 to 255; H and W multiples of 32.

        Returns:
            (N, C, H / 4, W / 4) of each head, before any sigmoid.
        """
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        x = self.stem(pictures * PIXEL_SCALE - 1.0)
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in dict(LATERALS):
                maps.append(x)
        maps.append(self.top(x))
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps)]
        merged = laterals.pop()
        for lateral, refine in zip(laterals[::-1], list(self.refine)[::-1]):
            merged = F.interpolate(merged, scale_factor=2.0, mode="bilinear", align_corners=False)
            merged = refine(merged + lateral)
        return {name: head(merged) for name, head in self.heads.items()}


class Block(nn.Module):
    """MobileNetV2's inverted residual."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, 3, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Convolution(nn.Module):
    """Convolution and ReLU6, padded as TensorFlow does: with stride 2 at right and bottom only."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.pad = (0, 1, 0, 1) if stride == 2 else None
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pad is None else F.pad(x, self.pad)
        return F.relu6(self.convolution(x), inplace=True)  # 1.25 times faster


class Separable(nn.Module):
    """Depthwise 3x3, pointwise, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(self.depthwise(x)), inplace=True)


def _channels(count: int, width: float) -> int:
    """The multiple of 8 nearest to ``width`` times a number of channels."""
    return int(count * width + 4) // 8 * 8


def gather_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """What maps hold in some of their cells.

    Args:
        maps: (N, C, h, w). cells: (N, P) int64, row times w plus column.

    Returns:
        (N, P, C).
    """
    flat = maps.flatten(2)  # (N, C, h w)
    index = cells[:, None].expand(-1, flat.shape[1], -1)
    return flat.gather(2, index).transpose(1, 2)


def joint_offsets(offsets: Tensor, cells: Tensor) -> Tensor:
    """Each joint's own offset in the cell of its peak.

    Args:
        offsets: (N, 2 J, h, w), y and x of each joint in turn. cells: (N, P, J) int64.

    Returns:
        (N, P, J, 2) as x, y, in cells.
    """
    flat = offsets.flatten(2).unflatten(1, (-1, 2))  # (N, J, 2, h w)
    index = cells.transpose(1, 2)[:, :, None].expand(-1, -1, 2, -1)  # (N, J, 2, P)
    return flat.gather(3, index).permute(0, 3, 1, 2).flip(-1)


def places(cells: Tensor, width: int) -> Tensor:
    """Column and row (..., 2) of cells (...) int64 of maps of a width, as floats."""
    return torch.stack([cells % width, cells // width], -1).float()
