"""What is true of an image: COCO's keypoints on the mesh, who is seen, boxes.

COCO's 17 keypoints are weighted means of vertices of the naked body, with the weights that Anny
carries (its COCO regressor): the eyes and ears lie on the head's surface, the nose is its tip, and
shoulders, elbows, wrists, hips, knees and ankles lie inside the limbs where annotators put them.
They move with the skin. Human3.6M's 17 are defined in `ptri.render.people.body`.

A joint is visible if it lies inside the image and no surface stands in front of it but the flesh
and clothes around the joint itself: the picture's depth there, at the least favourable but one
pixel of 3 x 3, has to reach the joint's depth less a radius.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ptri.render.stage.cameras import Camera
from ptri.skeleton import COCO17, H36M17

# m from a joint to the clothed surface around it, generous; other names: _RADIUS.
_RADII = {
    "foot": 0.10, "ankle": 0.10, "knee": 0.12, "hip": 0.22, "spine": 0.28, "thorax": 0.18,
    "shoulder": 0.14, "elbow": 0.09, "wrist": 0.08, "head": 0.07, "eye": 0.05, "ear": 0.06,
}  # fmt: skip
_NOSE = {"h36m17": 0.14, "coco17": 0.05}  # Human3.6M's lies inside the head


@functools.cache
def radii(joint_set: str) -> np.ndarray:
    """(17,) m, the radius of each joint of "h36m17" or "coco17"."""
    names = (H36M17 if joint_set == "h36m17" else COCO17).joints
    table = _RADII | {"nose": _NOSE[joint_set]}
    return np.array([table[name.split("_")[-1]] for name in names])


class Label(NamedTuple):
    """What is true of one image."""

    visible: np.ndarray  # (17,) bool, Human3.6M's joints
    coco_visible: np.ndarray  # (17,) bool, COCO's
    boxes: np.ndarray  # (4,) int16 px: top, left, bottom, right


def label(
    points: np.ndarray, joints: np.ndarray, coco: np.ndarray, camera: Camera, depth: np.ndarray
) -> Label:
    """Visibility and box of a person in a square picture.

    Args:
        points: (N, 3) m, world, the person's surface. joints, coco: (17, 3) m, world.
        depth: (h, w) m of the picture's surfaces.
    """
    sets = (("h36m17", joints), ("coco17", coco))
    seen = (find_visible(places, radii(name), camera, depth) for name, places in sets)
    return Label(*seen, find_box(points, camera, len(depth)))


def find_visible(
    points: np.ndarray, radius: np.ndarray, camera: Camera, depth: np.ndarray
) -> np.ndarray:
    """Which joints are seen.

    Args:
        points: (J, 3) m, world. radius: (J,) m. depth: (h, w) m of the picture's surfaces.

    Returns:
        (J,) bool.
    """
    pixels = camera.project(points)
    height, width = depth.shape
    column, row = np.rint(np.clip(pixels[:, :2], -2, [width + 1, height + 1])).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (pixels[:, 2] > 0)
    step = np.arange(-1, 2)
    rows = np.clip(row[:, None, None] + step[:, None], 0, height - 1)
    columns = np.clip(column[:, None, None] + step, 0, width - 1)
    around = np.sort(depth[rows, columns].reshape(len(points), 9), 1)[:, -2]
    return inside & (around > pixels[:, 2] - radius)


def find_box(points: np.ndarray, camera: Camera, size: int) -> np.ndarray:
    """Box (top, left, bottom, right) px, int16, around points (N, 3) m, inside the image."""
    # Rows of numbers, not columns: several times as fast for thousands of points.
    x, y, depth = (camera.R @ points.T.astype(float)) + camera.t[:, None]
    depth = np.maximum(depth, 0.01)  # m, as Camera.project
    x, y = (camera.K[i, i] * v / depth + camera.K[i, 2] for i, v in enumerate((x, y)))
    left, top = np.clip(np.floor([x.min(), y.min()]), 0, size - 1)
    right, bottom = np.clip(np.ceil([x.max(), y.max()]) + 1, 1, size)
    return np.array([top, left, bottom, right], np.int16)
