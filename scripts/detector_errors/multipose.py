"""MoveNet multipose as a detector of one person, of whose errors nothing is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri import checkpoint
from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.detectors.multipose import load_multipose
from ptri.skeleton import COCO17
from ptri.structures import UNKNOWN_DETECTOR, Keypoints


class Multipose(nn.Module):
    """Of the persons in a crop the one whose box fills it best."""

    name = "multipose"
    skeleton = COCO17
    image_size, crop_scale = 256, 1.0
    known = UNKNOWN_DETECTOR

    def __init__(self) -> None:
        super().__init__()
        self.network = load_multipose()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Keypoints:
        """See `PoseDetector`; covariances are NaN."""
        parts = [self.network(picture[None]) for picture in pictures(images)]
        boxes, scores, xy, confidence = (torch.cat(part) for part in zip(*parts))
        sides = (boxes[..., 2:] - boxes[..., :2]).amax(-1)  # (N, 6)
        best = (scores * sides).argmax(1)
        rows = torch.arange(len(best))
        return without_covariance(xy[rows, best], confidence[rows, best])

    def fingerprint(self) -> str:
        return checkpoint.digest(self.network)


def pictures(images: Tensor) -> Tensor:
    """Normalised images (N, 3, S, S) as RGB from 0 to 255."""
    mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
    return 255 * (images * std + mean)


def without_covariance(xy: Tensor, confidence: Tensor) -> Keypoints:
    return Keypoints(xy, torch.full((*xy.shape, 2), torch.nan), confidence)
