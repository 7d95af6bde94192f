"""Teaching a small network by a larger one's features (FitNets, Romero et al., ICLR 2015).

A network that starts from ImageNet weights learns sides and limbs from ten to forty times fewer
rendered images than one that starts from nothing (docs/network2d.md). Where there are no such
weights for the small network, it learns from one that has them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.models.network2d import Detection, Network2D

MEMORY = 0.998  # of the running mean and variance of the teacher's features
FIRST = 1  # maps from stride 8 on: the first one's edges need no teacher


class Imitation(nn.Module):
    """What a network's feature maps leave of a teacher's, after a linear map of each pixel."""

    def __init__(self, channels: list[int], teacher: Network2D) -> None:
        """
        Args:
            channels: of the small network's maps at strides 4, 8, 16, 32.
            teacher: fixed; no part of the state.
        """
        super().__init__()
        # Convolutions are a sixth faster in this format; in a list it is no submodule.
        fixed = teacher.backbone.eval().requires_grad_(False)
        self._teacher = [fixed.to(memory_format=torch.channels_last)]
        targets = teacher.backbone.channels[FIRST:]
        self.maps = nn.ModuleList(
            nn.Conv2d(student, target, 1) for student, target in zip(channels[FIRST:], targets)
        )
        self.register_buffer("seen", torch.zeros(()))  # batches
        for level, count in enumerate(targets):
            self.register_buffer(f"mean{level}", torch.zeros(count))
            self.register_buffer(f"variance{level}", torch.ones(count))

    def forward(self, images: Tensor, detection: Detection) -> Tensor:
        """The share of the teacher's variance that is not told, (N,): mean over maps and channels.

        Args:
            images: (N, 3, H, W), normalised, that `detection` is of.
        """
        teacher = self._teacher[0].to(images.device)
        with torch.no_grad():
            targets = teacher(images.contiguous(memory_format=torch.channels_last))[FIRST:]
            self.seen += 1
            rate = max(1 / float(self.seen), 1 - MEMORY)
        left = []
        for level, (student, target) in enumerate(zip(detection.maps[FIRST:], targets)):
            mean, variance = getattr(self, f"mean{level}"), getattr(self, f"variance{level}")
            with torch.no_grad():
                target = target.float()
                mean.lerp_(target.mean((0, 2, 3)), rate)
                variance.lerp_(target.var((0, 2, 3)), rate)
                target = (target - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            left.append((self.maps[level](student).float() - target).square().mean((1, 2, 3)))
        return torch.stack(left).mean(0)
