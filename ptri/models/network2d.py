"""The 2D network: image to keypoints with covariance and confidence, heatmaps and features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptri.config import ModelConfig
from ptri.errors import UserError
from ptri.models.heatmap import (
    STRIDE,
    HeatmapHead,
    Reliability,
    heatmap_moments,
    heatmap_to_image,
)
from ptri.models.mobileone import STRIDES, Backbone, has_branches
from ptri.models.sizes import sizes_of
from ptri.skeleton import H36M17, Skeleton
from ptri.structures import Keypoints, tree_map


class Detection(NamedTuple):
    """What the 2D network says about N images."""

    keypoints: Keypoints  # xy (N, J, 2) px of the network image, and so on; no NaN
    logits: Tensor  # (N, J, h, w); softmax over pixels gives the heatmap; h = H / 4
    features: Tensor  # (N, C, h, w) to sample joint features from
    maps: list[Tensor]  # (N, C_i, H / s, W / s) of the backbone, s = 4, 8, 16, 32


class Network2D(nn.Module):
    """MobileOne, a light up-sampling head, and learned uncertainty."""

    def __init__(self, config: ModelConfig, skeleton: Skeleton = H36M17) -> None:
        super().__init__()
        num_joints = len(skeleton.joints)
        sizes = sizes_of(config)
        width = sizes.head_channels
        self.backbone = Backbone(
            config.backbone, config.pretrained, config.plain_convolutions, config.pretrained_file
        )
        self.head = HeatmapHead(self.backbone.channels, width, num_joints, sizes.context)
        self.reliability = Reliability(width, num_joints)
        self.flip_test = config.flip_test
        self.mirrored_joints = list(skeleton.flip)

    def forward(self, images: Tensor, isolate_uncertainty: bool = False) -> Detection:
        """
        Args:
            images: (N, 3, H, W), normalised; H and W multiples of 32.
            isolate_uncertainty: covariance and confidence pass no gradient to heatmaps and
                features, so that their losses train only their own weights.

        Raises:
            UserError: the image size is no multiple of 32.
        """
        if any(side % STRIDES[-1] for side in images.shape[-2:]):
            raise UserError(
                f"data.image_size: images are {images.shape[-1]} x {images.shape[-2]} px; both "
                f"must be multiples of {STRIDES[-1]}"
            )
        logits, features, maps = self._heatmaps(images)
        if self.flip_test and not self.training:
            mirrored = self._heatmaps(images.flip(-1))[0].flip(-1)
            logits = 0.5 * (logits + mirrored[:, self.mirrored_joints])
        with torch.autocast(images.device.type, enabled=False):
            logits = logits.float()
            moments = heatmap_moments(logits)
            xy = heatmap_to_image(moments.mean)
            source = features.float()
            if isolate_uncertainty:
                moments, source = tree_map(Tensor.detach, (moments, source))
            covariance, confidence = self.reliability(moments, source)
            keypoints = Keypoints(xy, covariance * STRIDE**2, confidence.sigmoid())
        return Detection(keypoints, logits, features, maps)

    def _heatmaps(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        # Channels last is 1.2 to 1.5 times faster, but in float32 on a CPU the backward pass of
        # the stem's 1x1 branch crashes in it (torch 2.13).
        crashes = images.device.type == "cpu" and torch.is_grad_enabled()
        if not (crashes and has_branches(self.backbone)):
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.backbone(images)
        return *self.head(maps), maps
