"""Calibrations of Qualisys Track Manager (``*.qca.txt``, XML) as the tree of a camera file.

Numbers of the lens are in units of 1/64 px. The transform's rotation has the camera's y and z axes
the other way round than ours, and its place is the camera's centre in mm.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np

ENDING = ".qca.txt"
_PER_PIXEL = 64.0
_DISTORTION = ("radialDistortion1", "radialDistortion2", "tangentalDistortion1")  # as spelt there
_DISTORTION += ("tangentalDistortion2", "radialDistortion3")  # OpenCV's k1 k2 p1 p2 k3


def parse_qca(text: str) -> dict[str, Any]:
    """The cameras that are active.

    Raises:
        ValueError: no XML, or a number is missing; the message names it.
    """
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise ValueError(f"not Qualisys' XML: {error}") from None
    cameras = [camera for camera in root.iter("camera") if camera.get("active", "1") == "1"]
    return {"units": "mm", "cameras": [_camera(camera) for camera in cameras]}


def _camera(camera: ElementTree.Element) -> dict[str, Any]:
    name = camera.get("serial")

    def numbers(part: str, *names: str) -> list[float]:
        element = camera.find(part)
        try:
            return [float(element.attrib[key]) for key in names]
        except (AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"camera {name}: {part}: {error}") from None

    left, top, right, bottom = numbers("fov_video", "left", "top", "right", "bottom")
    lens = "focalLengthU", "focalLengthV", "centerPointU", "centerPointV"
    fx, fy, cx, cy = np.array(numbers("intrinsic", *lens)) / _PER_PIXEL
    M = np.reshape(numbers("transform", *(f"r{i}{j}" for i in "123" for j in "123")), (3, 3))
    R = np.diag([1.0, -1.0, -1.0]) @ M
    return {
        "name": name,
        "size": [right - left + 1, bottom - top + 1],
        "K": [[fx, 0, cx - left], [0, fy, cy - top], [0, 0, 1]],
        "dist": numbers("intrinsic", *_DISTORTION),
        "R": R.tolist(),
        "t": (-R @ numbers("transform", "x", "y", "z")).tolist(),
    }
