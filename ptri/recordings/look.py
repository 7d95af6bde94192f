"""One look of a detector at crops of one frame: keypoints in full-image pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ptri.data import transforms
from ptri.detectors.protocol import PoseDetector
from ptri.recordings.intrinsics import CameraEntry

ROUGH = 8  # px of a crop that are one when its colours are looked at


class CropKeypoints(NamedTuple):
    """Keypoints of N crops of one frame, in undistorted full-image px unless stated otherwise."""

    view: np.ndarray  # (N,) that the crop is of
    xy: np.ndarray  # (N, J, 2)
    covariance: np.ndarray  # (N, J, 2, 2) px^2
    confidence: np.ndarray  # (N, J)
    local: np.ndarray  # (N, J, 2) px of the crop as the detector sees it
    crops: np.ndarray  # (N, 4) centre x, y and side px, turn rad
    colours: np.ndarray  # (N, 6) of trunk and thighs, blue, green, red, 0 to 255


def look_at(
    detector: PoseDetector,
    cameras: Sequence[CameraEntry],
    images: Sequence[np.ndarray | None],
    views: np.ndarray,
    crops: np.ndarray,
) -> CropKeypoints:
    """Cuts crops out of the images of V views and detects keypoints in them.

    Args:
        images: V of (H, W, 3) uint8 BGR, as recorded; None where there is no crop.
        views: (N,) of the crops, places in images. crops: (N, 4).
    """
    size = detector.image_size
    if not len(views):
        J = len(detector.skeleton.joints)
        shapes = ((J, 2), (J, 2, 2), (J,), (J, 2), (4,), (6,))
        return CropKeypoints(views, *(np.zeros((0, *shape)) for shape in shapes))
    shrink = functools.cache(lambda view, factor: transforms.reduce_image(images[view], factor))
    pictures, to_full = [], []
    for view, (x, y, side, roll) in zip(views, crops):
        camera = cameras[view]
        K, turn = transforms.crop_camera(camera.K, np.array([x, y]), side, size, roll)
        # Sampling alone would skip pixels of a large crop: average them first.
        factor = transforms.reduction_for(side, size)
        source = transforms.resize_intrinsics(camera.K, 1 / factor)
        dist = camera.dist if camera.dist.any() else None
        image = transforms.warp(shrink(view, factor), source, K, turn, size, dist)
        pictures.append(image)
        to_full.append((camera.K @ turn.T @ np.linalg.inv(K))[:2])
    with torch.no_grad():
        inputs = [transforms.normalise(image[:, :, ::-1]) for image in pictures]
        keypoints = detector(torch.stack(inputs))
    local, covariance, confidence = (part.double().cpu().numpy() for part in keypoints)
    A, offset = np.split(np.array(to_full), [2], axis=2)  # (N, 2, 2), (N, 2, 1)
    xy = np.einsum("nab,njb->nja", A, local) + offset.transpose(0, 2, 1)
    covariance = np.einsum("nab,njbc,ndc->njad", A, covariance, A)
    joints = detector.skeleton.joints
    colours = np.array([clothes(*part, joints) for part in zip(pictures, local)])
    return CropKeypoints(views, xy, covariance, confidence, local, crops, colours)


def clothes(picture: np.ndarray, xy: np.ndarray, joints: Sequence[str]) -> np.ndarray:
    """Mean colours (6,) of the trunk and of the thighs.

    Args:
        picture: (S, S, 3) uint8. xy: (J, 2) px, of the named joints.
    """
    rough = cv2.resize(picture, None, fx=1 / ROUGH, fy=1 / ROUGH, interpolation=cv2.INTER_AREA)
    ends = {
        f"{side}_{joint}": xy[joints.index(f"{side}_{joint}")]
        for side in ("left", "right")
        for joint in ("shoulder", "hip", "knee")
    }
    means = []
    for upper, lower in (("shoulder", "hip"), ("hip", "knee")):
        lines = [(ends[f"{side}_{upper}"], ends[f"{side}_{lower}"]) for side in ("left", "right")]
        points = [a + share * (b - a) for a, b in lines for share in (0.25, 0.5, 0.75)]
        places = np.clip(np.array(points) / ROUGH, 0, np.array(rough.shape[1::-1]) - 1).astype(int)
        means.append(rough[places[:, 1], places[:, 0]].mean(0))
    return np.concatenate(means)
