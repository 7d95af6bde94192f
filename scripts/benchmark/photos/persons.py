"""Crops of labelled persons in photographs, as `data.kind: coco` has them; detectors on them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ptri.config import DataConfig
from ptri.data import transforms
from ptri.data.annotations import COCO_ROWS, JOINTS, OUR_ROWS, Persons
from ptri.data.coco import crop_person
from ptri.detectors.protocol import PoseDetector
from ptri.models.mobileone import merge_batchnorm
from ptri.models.network2d import Network2D
from ptri.models.weights import read_network2d
from ptri.skeleton import H36M17, Skeleton

# Median of torso / longer side of the box over the 48 persons of coco_mini that show both.
TORSO_SHARE = 0.38


class Crops(NamedTuple):
    """N persons in square images of S px; lengths in px of these images."""

    names: list[str]
    photos: list[str]  # N names of the photographs they come from
    images: np.ndarray  # (N, S, S, 3) uint8 RGB
    xy: np.ndarray  # (N, 12, 2) truth of JOINTS
    labelled: np.ndarray  # (N, 12) bool
    visible: np.ndarray  # (N, 12) bool, labelled as visible
    box: np.ndarray  # (N,) longer side of the box
    torso: np.ndarray  # (N,) see `torso_length`
    source: np.ndarray  # (N,) the box's longer side in px of the photograph

    @property
    def size(self) -> int:
        return self.images.shape[1]


class Guess(NamedTuple):
    """What a method says of N crops; NaN xy = nothing found."""

    xy: np.ndarray  # (N, 12, 2) px of the crops, JOINTS
    covariance: np.ndarray | None = None  # (N, 12, 2, 2) px^2
    confidence: np.ndarray | None = None  # (N, 12)
    skeleton: np.ndarray | None = None  # (N, 17, 2) px, all of H36M17, to draw


def torso_length(xy: np.ndarray, labelled: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The longest labelled distance between a shoulder and a hip; FLIC's torso is a diagonal too.

    Where no such pair is labelled: `TORSO_SHARE` of the box's longer side.

    Args:
        xy: (N, 12, 2) px. labelled: (N, 12). box: (N,) px, longer sides.

    Returns:
        (N,) px.
    """
    shoulder, hip = (
        [JOINTS.index(f"{s}_{n}") for s in ("left", "right")] for n in ("shoulder", "hip")
    )
    length = np.linalg.norm(xy[:, shoulder, None] - xy[:, None, hip], axis=-1)  # (N, 2, 2)
    known = labelled[:, shoulder, None] & labelled[:, None, hip]
    longest = np.where(known, length, 0.0).max((1, 2))
    return np.where(longest > 0, longest, TORSO_SHARE * box)


def crop_persons(persons: Persons, size: int, scale: float = 1.0) -> Crops:
    """Square crops by the given boxes, those of `data.kind: coco` when it is tested on.

    Args:
        size: px of a crop. scale: its side over the longer side of the box, ``data.crop_scale``.

    Raises:
        UserError: an image that cannot be read.
    """
    data = DataConfig(image_size=size, crop_scale=scale)
    views = [crop_person(persons, row, data) for row in range(len(persons.photo))]
    points, flags = persons.keypoints[:, COCO_ROWS, :2], persons.keypoints[:, COCO_ROWS, 2]
    focal = np.stack([view.K[[0, 1], [0, 1]] for view in views])  # (N, 2)
    centre = np.stack([view.K[:2, 2] for view in views])
    xy = points * focal[:, None] + centre[:, None]
    source = persons.box[:, 2:].max(1)
    box = source * focal[:, 0]
    photos = [Path(persons.images[photo]) for photo in persons.photo]
    names = [f"{number:03d}_{photo.stem}" for number, photo in zip(persons.number, photos)]
    images = np.stack([view.image for view in views])
    torso = torso_length(xy, flags > 0, box)
    photos = [photo.name for photo in photos]
    return Crops(names, photos, images, xy, flags > 0, flags > 1, box, torso, source)


def load_network(path: str | Path, flip: bool = False) -> tuple[Network2D, int]:
    """A fused 2D network from shipped weights or a checkpoint, and the size it was trained at.

    Raises:
        UserError: see `read_network2d`.
    """
    network, size = read_network2d(path, flip_test=flip)
    return merge_batchnorm(network), size


@torch.no_grad()
def predict(detector: PoseDetector, crops: Crops, batch: int = 16) -> Guess:
    """Keypoints of all crops."""
    parts = []
    for start in range(0, len(crops.images), batch):
        images = [transforms.normalise(image) for image in crops.images[start : start + batch]]
        parts.append([part.cpu().numpy() for part in detector(torch.stack(images))])
    xy, covariance, confidence = (np.concatenate(part) for part in zip(*parts))
    rows = OUR_ROWS if detector.skeleton == H36M17 else _rows(detector.skeleton)
    whole = xy if detector.skeleton == H36M17 else None
    stated = None if np.isnan(covariance).all() else covariance[:, rows]
    return Guess(xy[:, rows], stated, confidence[:, rows], whole)


def _rows(skeleton: Skeleton) -> list[int]:
    return [skeleton.joints.index(name) for name in JOINTS]
