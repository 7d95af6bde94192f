"""The 2D network between plain tensors: what every runtime is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.errors import UserError
from ptri.models.mobileone import has_branches
from ptri.models.network2d import Network2D

KEYPOINTS = ("xy", "covariance", "confidence")
HEATMAPS = ("logits", "features")


class Exported(nn.Module):
    """Images to keypoints, or to what keypoints are decoded from."""

    def __init__(self, network: Network2D, raw: bool = True, decoded: bool = True) -> None:
        """
        Args:
            network: with merged BatchNorms.
            raw: normalise the images inside.
            decoded: give `KEYPOINTS`, else `HEATMAPS`.

        Raises:
            UserError: BatchNorms are not merged.
        """
        super().__init__()
        if has_branches(network):
            raise UserError(
                "BatchNorm is not merged; use ptri.models.mobileone.merge_batchnorm first"
            )
        self.network, self.raw, self.decoded = network, raw, decoded
        self.outputs = KEYPOINTS if decoded else HEATMAPS
        mean, std = (torch.from_numpy(255 * v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", mean / std, persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) float32 RGB, 0 to 255 where ``raw``, else normalised.

        Returns:
            xy (N, J, 2) px, covariance (N, J, 2, 2) px^2, confidence (N, J); or logits
            (N, J, H/4, W/4), whose softmax over pixels is the heatmap, features (N, C, H/4, W/4).
        """
        if self.raw:
            images = images * self.scale - self.shift
        if self.decoded:
            return tuple(self.network(images).keypoints)
        return self.network.head(self.network.backbone(images))
