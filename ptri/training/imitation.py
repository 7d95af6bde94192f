"""Teaching a small network by a larger one's features or heatmaps.

Features (FitNets, Romero et al., ICLR 2015): a network that starts from ImageNet weights learns
sides and limbs from ten to forty times fewer rendered images than one that starts from nothing
(docs/network2d.md). Where there are no such weights for the small network, it learns from one that
has them. Heatmaps (Hinton et al., 2015, arXiv:1503.02531): they say where a joint is, and where
else it might be, on photographs that nobody labelled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptri.detectors.protocol import PoseDetector
from ptri.models.heatmap import STRIDE, image_to_heatmap
from ptri.models.losses import HEATMAP_SIGMA, masked_mean
from ptri.models.mobileone import merge_batchnorm
from ptri.models.network2d import Detection, Network2D
from ptri.skeleton import H36M17, linear_map

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
            rate = (1 / self.seen).clamp_min(1 - MEMORY)
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


# Normalised images (N, 3, S, S) to heatmaps (N, 17, h, w), each of sum 1, and confidences (N, 17).
Heatmaps = Callable[[Tensor], tuple[Tensor, Tensor]]


def network_heatmaps(network: Network2D) -> Heatmaps:
    """The heatmaps of a 2D network, which is not trained."""
    merged = merge_batchnorm(network)

    def heatmaps(images: Tensor) -> tuple[Tensor, Tensor]:
        seen = merged.to(images.device)(images)
        target = seen.logits.flatten(-2).softmax(-1).unflatten(-1, seen.logits.shape[-2:])
        return target, seen.keypoints.confidence

    return heatmaps


def detector_heatmaps(detector: PoseDetector) -> Heatmaps:
    """What a detector says, as heatmaps: Gaussians of its covariances, as blurred as our targets.

    Those of our 17 joints that are not just one of the detector's have no confidence. All of it is
    done in float32: of fewer bits, moments of heatmaps lose what they say.
    """
    share = torch.as_tensor(linear_map(detector.skeleton, H36M17)).nan_to_num()  # (17, J)
    same, source = (share == 1).any(1), share.argmax(1)

    def heatmaps(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            return in_full(images.float())

    def in_full(images: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(detector, nn.Module):
            detector.to(images.device)
        xy, covariance, confidence = (part[:, source.to(part.device)] for part in detector(images))
        side = images.shape[-1] // STRIDE
        blur = HEATMAP_SIGMA**2 * torch.eye(2).to(covariance)
        information = torch.linalg.inv(covariance / STRIDE**2 + blur)  # (N, 17, 2, 2)
        line = torch.arange(side).to(xy)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (h, w, 2)
        away = grid - image_to_heatmap(xy)[:, :, None, None]  # (N, 17, h, w, 2)
        square = torch.einsum("njhwa,njab,njhwb->njhw", away, information, away)
        target = (-square / 2).flatten(-2).softmax(-1).unflatten(-1, (side, side))
        return target.to(images.device), (confidence * same.to(confidence)).to(images.device)

    return heatmaps


class HeatmapTeacher:
    """How far a network's heatmaps are from a teacher's, where nobody knows the truth."""

    def __init__(self, heatmaps: Heatmaps, size: int) -> None:
        """
        Args:
            heatmaps: the teacher's. size: px of the images that it was trained on; it sees others
                resized to these.
        """
        self.heatmaps, self.size = heatmaps, size

    def __call__(self, images: Tensor, logits: Tensor, unknown: Tensor) -> Tensor:
        """``confidence KL(teacher || network)`` over pixels, the mean over unknown joints, (N,).

        A joint counts by the teacher's confidence, its own chance of having found it. Images
        without unknown joints have 0.

        Args:
            images: (N, 3, H, W), normalised. logits: (N, J, h, w) of the network's heatmaps.
            unknown: (N, J) bool, joints to be taught.
        """
        # A wait for the GPU, which costs less than the teacher on images that it cannot teach.
        rows = unknown.any(1).nonzero()[:, 0]
        apart = logits.new_zeros(len(images))
        if not len(rows):
            return apart + 0.0 * logits.sum()  # of the same graph
        target, confidence = self._heatmaps(images[rows], logits.shape[-1])
        ours = logits[rows].flatten(-2).log_softmax(-1)
        divergence = (target * (target.clamp_min(1e-30).log() - ours)).sum(-1)  # guards 0 log 0
        return apart.index_copy(0, rows, masked_mean(confidence * divergence, unknown[rows]))

    @torch.no_grad()
    def _heatmaps(self, images: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """The teacher's heatmaps (N, J, side^2), each of sum 1, and confidences (N, J)."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        target, confidence = self.heatmaps(images)
        if target.shape[-1] != side:
            target = F.interpolate(target, (side, side), mode="bilinear", antialias=True)
        target = target.flatten(-2)
        return target / target.sum(-1, keepdim=True), confidence
