"""Labelled persons in photographs (COCO's format), cropped as the project's own images are.

Boxes are COCO's: x, y, width, height in px of a continuous plane whose pixel i spans i to i + 1,
hence tight around the visible part of a person. Keypoints are taken as pixel indices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ptri.data import transforms
from ptri.errors import UserError
from ptri.models.mobileone import merge_batchnorm
from ptri.models.network2d import Network2D
from ptri.models.weights import read_network2d
from ptri.skeleton import COCO17, H36M17

# COCO joints that our 17 have as well; H36M's "foot" is the ankle. Its "nose" lies inside the head
# and its "head" on top of it: COCO's nose, eyes and ears have no counterpart and are not scored.
JOINTS = tuple(name for name in COCO17.joints[5:])
COCO_ROWS = tuple(COCO17.joints.index(name) for name in JOINTS)
OUR_ROWS = tuple(H36M17.joints.index(name.replace("ankle", "foot")) for name in JOINTS)
# Median of torso / longer side of the box over the 48 persons of coco_mini that show both.
TORSO_SHARE = 0.38


class Person(NamedTuple):
    """One labelled person."""

    name: str  # unique: its number in the file and the image's name
    image: Path
    box: np.ndarray  # (4,) px: x, y, width, height
    keypoints: np.ndarray  # (17, 3) COCO order: x, y px, 0 not labelled, 1 hidden, 2 visible


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


def load_persons(path: str | Path, min_keypoints: int = 10) -> list[Person]:
    """Reads a list of {image, bbox, keypoints}; images are relative to the file's folder.

    COCO's own {images, annotations} files are read too (category 1, no crowds).

    Args:
        min_keypoints: persons with fewer labelled ones of COCO's 17 are left out.

    Raises:
        UserError: unreadable, not of this format, or nobody left.
    """
    path, content = Path(path), read_json(path)
    entries = _coco_entries(path, content) if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of persons or COCO's annotations")
    persons = [_person(path, index, entry) for index, entry in enumerate(entries)]
    kept = [p for p in persons if (p.keypoints[:, 2] > 0).sum() >= min_keypoints]
    if not kept:
        raise UserError(
            f"{path}: none of {len(persons)} persons has {min_keypoints} labelled keypoints; "
            "lower --min-keypoints"
        )
    return kept


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; a UserError where it cannot be read."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {error}") from None


def _coco_entries(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        return [
            {**entry, "image": names[entry["image_id"]]}
            for entry in content["annotations"]
            if entry.get("category_id", 1) == 1
            and not entry.get("iscrowd")
            and "keypoints" in entry
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected COCO's images (id, file_name) and annotations (image_id, bbox, "
            f"keypoints): {type(error).__name__} {error}"
        ) from None


def _person(path: Path, index: int, entry: Any) -> Person:
    try:
        image = path.parent / entry["image"]
        box = np.array(entry["bbox"], np.float64)
        keypoints = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: person {index}: {type(error).__name__} {error}; expected image, bbox "
            "[x, y, width, height] and keypoints, 17 times x, y, v"
        ) from None
    if box.shape != (4,) or not (np.isfinite(box).all() and (box[2:] >= 1).all()):
        raise UserError(f"{path}: person {index}: bbox {entry['bbox']}: no box of a pixel or more")
    if keypoints.shape != (17, 3) or not np.isfinite(keypoints).all():
        raise UserError(f"{path}: person {index}: {keypoints.shape[0]} keypoints, expected 17")
    return Person(f"{index:03d}_{image.stem}", image, box, keypoints)


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


def crop_persons(persons: list[Person], size: int, scale: float = 1.0) -> Crops:
    """Square crops by the given boxes, read, reduced and resampled as `MultiView` samples are.

    Args:
        size: px of a crop. scale: its side over the longer side of the box, ``data.crop_scale``.

    Raises:
        UserError: an image that cannot be read.
    """
    images, points, sides = [], [], []
    eye = np.eye(3)
    for person in persons:
        x, y, width, height = person.box
        box = np.array([y, x, y + height, x + width])
        centre, side = transforms.square_crop(box, scale)
        cropped, turn = transforms.crop_camera(eye, centre, side, size)
        reduction = transforms.reduction_for(side, size)
        photo = transforms.read_jpeg(person.image, reduction)
        source = transforms.resize_intrinsics(eye, 1 / reduction)
        images.append(transforms.warp(photo, source, cropped, turn, size)[:, :, ::-1])
        points.append(person.keypoints[COCO_ROWS, :2] * cropped[0, 0] + cropped[:2, 2])
        sides.append(max(width, height) * size / side)
    flags = np.stack([person.keypoints[COCO_ROWS, 2] for person in persons])
    xy, box = np.stack(points), np.array(sides)
    source = np.array([person.box[2:].max() for person in persons])
    names = [person.name for person in persons]
    photos = [person.image.name for person in persons]
    torso = torso_length(xy, flags > 0, box)
    return Crops(names, photos, np.stack(images), xy, flags > 0, flags > 1, box, torso, source)


def load_network(path: str | Path, flip: bool = False) -> tuple[Network2D, int]:
    """A fused 2D network from shipped weights or a checkpoint, and the size it was trained at.

    Raises:
        UserError: see `read_network2d`.
    """
    network, size = read_network2d(path, flip_test=flip)
    return merge_batchnorm(network), size


@torch.no_grad()
def predict(network: Network2D, crops: Crops, batch: int = 16) -> Guess:
    """Keypoints of all crops."""
    parts = []
    for start in range(0, len(crops.images), batch):
        images = [transforms.normalise(image) for image in crops.images[start : start + batch]]
        parts.append([part.numpy() for part in network(torch.stack(images)).keypoints])
    xy, covariance, confidence = (np.concatenate(part) for part in zip(*parts))
    rows = list(OUR_ROWS)
    return Guess(xy[:, rows], covariance[:, rows], confidence[:, rows], xy)
