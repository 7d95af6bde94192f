"""Heatmaps: a light up-sampling head, and decoding to keypoints with stated uncertainty.

A heatmap is a softmax over *pixels*. Its mode, refined by the mean of a small window, is the
keypoint; the window's second moments give the covariance its shape, and a small network trained on
the observed errors gives it its size, and the confidence. Everything is differentiable in the
logits. Heatmap px u and network-image px u' relate by ``u' = (u + 0.5) stride - 0.5``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptri.models.mobileone import ConvNorm
from ptri.structures import constant

STRIDE = 4  # network-image px per heatmap px
WINDOW = 4.0  # heatmap px, half width of the window around the mode
MAX_ANISOTROPY = 0.95  # (a - b) / (a + b) of the covariance's eigenvalues a > b stays below
MIN_VARIANCE = 1e-4  # heatmap px^2; guards the logarithm and division for a one-pixel peak


class Moments(NamedTuple):
    """What a window of +-`WINDOW` px around a heatmap's mode says; heatmap px."""

    probability: Tensor  # (N, J, h, w), sums to 1 over pixels
    mean: Tensor  # (N, J, 2) as x, y
    covariance: Tensor  # (N, J, 2, 2)
    peak: Tensor  # (N, J) probability of the mode's pixel
    mass: Tensor  # (N, J) probability inside the window


class HeatmapHead(nn.Module):
    """Top-down pyramid of depthwise-separable convolutions to heatmaps at stride 4."""

    def __init__(
        self, channels: list[int], width: int, num_joints: int, context: bool = True
    ) -> None:
        """
        Args:
            channels: of the maps at strides 4, 8, 16, 32.
            width: channels of the pyramid and of the feature map.
            context: `Context` on the map at stride 32.
        """
        super().__init__()
        self.context = Context(channels[-1], width) if context else None
        self.lateral = nn.ModuleList(ConvNorm(count, width, 1) for count in channels)
        kernels = (3, 5, 5, 5)  # larger ones where a pixel is cheap
        self.refine = nn.ModuleList(_separable(width, kernel) for kernel in kernels)
        self.heatmaps = nn.Conv2d(width, num_joints, 1, bias=False)  # softmax ignores a bias
        nn.init.normal_(self.heatmaps.weight, std=0.01)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (N, C_i, H/s_i, W/s_i) to logits (N, J, h, w) and features (N, width, h, w)."""
        coarse: Tensor | None = None
        for level in reversed(range(len(maps))):
            merged = self.lateral[level](maps[level])
            if coarse is not None:
                merged = merged + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
            elif self.context is not None:
                merged = merged + self.context(maps[level])
            coarse = self.refine[level](F.relu(merged))
        return self.heatmaps(coarse), coarse


class Context(nn.Module):
    """Attention of every pixel of the coarsest map to all others.

    A convolution's effective receptive field is far smaller than its theoretical one, and the side
    of a limb is told by the face and the chest. The output starts at zero.
    """

    def __init__(self, inputs: int, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(inputs)
        self.project = nn.Linear(inputs, 3 * width, bias=False)  # query, key, value
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, coarse: Tensor) -> Tensor:
        """Map (N, C, h, w) to what is added to the head's coarsest level, (N, width, h, w)."""
        height, width = coarse.shape[-2:]
        tokens = self.norm(coarse.flatten(2).transpose(1, 2))  # (N, h w, C)
        # (N, h w, 3 width) -> three of (N, heads, h w, width / heads)
        parts = self.project(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.output(mixed).transpose(1, 2).unflatten(-1, (height, width))


def _separable(width: int, kernel: int) -> nn.Sequential:
    depthwise, pointwise = ConvNorm(width, width, kernel, groups=width), ConvNorm(width, width, 1)
    return nn.Sequential(depthwise, nn.ReLU(), pointwise, nn.ReLU())


class Reliability(nn.Module):
    """Size of the error and chance of having found the joint, from the heatmap and the features."""

    def __init__(self, width: int, num_joints: int, hidden: int = 32) -> None:
        super().__init__()
        self.features = nn.Linear(width, hidden)
        self.statistics = nn.Linear(4, hidden)
        self.joint = nn.Parameter(torch.zeros(num_joints, hidden))
        self.output = nn.Linear(hidden, 2)
        # Second moment that even a certain heatmap has (its target is blurred), heatmap px^2.
        self.blur = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, moments: Moments, features: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            moments: of the heatmaps. features: (N, C, h, w).

        Returns:
            Covariances (N, J, 2, 2) heatmap px^2 and confidence logits (N, J).
        """
        M = moments.covariance
        variance = 0.5 * (M[..., 0, 0] + M[..., 1, 1]) + MIN_VARIANCE  # (N, J)
        eye = torch.eye(2, dtype=M.dtype, device=M.device)
        deviation = M - (variance - MIN_VARIANCE)[..., None, None] * eye  # eigenvalues +-radius
        radius = (0.5 * deviation.square().sum((-1, -2)) + MIN_VARIANCE**2).sqrt()
        # Features where the heatmap looks: the mean under its probability.
        pooled = torch.einsum("njhw,nchw->njc", moments.probability, features)
        statistics = torch.stack(
            [moments.peak.log(), moments.mass.log(), variance.log(), radius / variance], -1
        )
        hidden = F.relu(self.features(pooled) + self.statistics(statistics) + self.joint)
        log_size, confidence = self.output(hidden).unbind(-1)
        # +-5: sizes from 1/150 to 150 of the heatmap's own; guards the exponential.
        size = variance * torch.exp(2 * 5 * torch.tanh(log_size / 5))
        scale = torch.maximum(variance - self.blur, radius / MAX_ANISOTROPY)
        return size[..., None, None] * (eye + deviation / scale[..., None, None]), confidence


def heatmap_moments(logits: Tensor) -> Moments:
    """Mode, window mean and second moments of heatmaps.

    The window is first set on the mode, then, with soft edges, on the mean found there: so a
    symmetric peak has no bias towards pixel centres. The windows carry no gradient.

    Args:
        logits: (N, J, h, w).
    """
    height, width = logits.shape[-2:]
    flat = logits.flatten(-2).softmax(-1)  # (N, J, h w)
    peak, index = flat.max(-1)
    probability = flat.unflatten(-1, (height, width))
    x = torch.arange(width, dtype=flat.dtype, device=flat.device)
    y = torch.arange(height, dtype=flat.dtype, device=flat.device)
    centre_x, centre_y = (index % width).to(flat.dtype), (index // width).to(flat.dtype)
    with torch.no_grad():
        cut = probability * _window(x, y, centre_x, centre_y)
        mass = cut.sum((-1, -2))
        centre_x, centre_y = (cut.sum(-2) @ x) / mass, (cut.sum(-1) @ y) / mass
        inside = _window(x, y, centre_x, centre_y)
    cut = probability * inside  # (N, J, h, w)
    mass = cut.sum((-1, -2))
    dx, dy = x - centre_x[..., None], y - centre_y[..., None]  # (N, J, w), (N, J, h)
    along_x, along_y = cut.sum(-2) / mass[..., None], cut.sum(-1) / mass[..., None]
    mean_x, mean_y = (along_x * dx).sum(-1), (along_y * dy).sum(-1)
    var_x = (along_x * dx.square()).sum(-1) - mean_x.square()
    var_y = (along_y * dy.square()).sum(-1) - mean_y.square()
    mixed = ((cut @ dx[..., None]).squeeze(-1) * dy).sum(-1) / mass - mean_x * mean_y
    covariance = torch.stack([var_x, mixed, mixed, var_y], -1).unflatten(-1, (2, 2))
    mean = torch.stack([centre_x + mean_x, centre_y + mean_y], -1)
    return Moments(probability, mean, covariance, peak, mass)


def _window(x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    """The window (..., h, w) about centres (...), its edges one pixel soft; x (w,), y (h,)."""
    along_x = (WINDOW + 0.5 - (x - centre_x[..., None]).abs()).clamp(0, 1)
    along_y = (WINDOW + 0.5 - (y - centre_y[..., None]).abs()).clamp(0, 1)
    return along_y[..., :, None] * along_x[..., None, :]


def heatmap_to_image(xy: Tensor) -> Tensor:
    """Heatmap px to network-image px; both have integer coordinates at pixel centres."""
    return (xy + 0.5) * STRIDE - 0.5


def image_to_heatmap(xy: Tensor) -> Tensor:
    """Network-image px to heatmap px."""
    return (xy + 0.5) / STRIDE - 0.5


def sample_features(features: Tensor, xy: Tensor) -> Tensor:
    """Features at keypoints, bilinear; at the border of the map outside it.

    Args:
        features: (N, C, h, w). xy: (N, J, 2) network-image px.

    Returns:
        (N, J, C).
    """
    height, width = features.shape[-2:]
    size = constant((width, height), xy.device, xy.dtype)
    grid = (2 * image_to_heatmap(xy) + 1) / size - 1  # grid_sample's pixel-edge units
    sampled = F.grid_sample(
        features, grid.unsqueeze(1).to(features), padding_mode="border", align_corners=False
    )
    return sampled.squeeze(2).transpose(1, 2)
