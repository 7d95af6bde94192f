"""What a detector of one person's keypoints gives, whoever made it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ptri.skeleton import Skeleton
from ptri.structures import Detector, Keypoints


class PoseDetector(Protocol):
    """Finds one person's keypoints in square crops."""

    name: str  # as `detector.name` says it
    skeleton: Skeleton  # of the keypoints
    image_size: int  # px, side of the crops
    crop_scale: float  # side of the crop over the longer side of the person's box
    known: Detector  # what is known of its errors; it is kept with the weights

    def __call__(self, images: Tensor) -> Keypoints:
        """
        Args:
            images: (N, 3, S, S) of S = `image_size`, as `ptri.data.transforms.normalise` makes
                them, on any device.

        Returns:
            xy (N, J, 2) px of the crop with integer coordinates at pixel centres, covariance
            (N, J, 2, 2) px^2, confidence (N, J) in [0, 1].
        """
        ...

    def fingerprint(self) -> str:
        """Tells its weights and settings from others, for files of detections."""
        ...
