"""Where the people are in a picture: their boxes and, roughly, their joints."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch

from ptri import checkpoint
from ptri.detectors.centernet import COARSEST
from ptri.detectors.multipose import load_multipose
from ptri.detectors.rtm import PEOPLE, open_onnx

# Longer side of the picture that MoveNet sees, px. Of 50 persons in 26 photographs of COCO it finds
# 31 at 256, 31 at 320 and 35 at 384 px, in 35, 55 and 77 ms on one core; the man of the sample
# recordings it always finds.
LONGER_SIDE = 320
LEAST_SCORE = 0.15  # people in the sample recordings have 0.29 and more, anything else 0.1 and less
RTM_SCORE = 0.5  # of rtmlib's detectors


class People(NamedTuple):
    """P persons in a picture, px as it was given."""

    boxes: np.ndarray  # (P, 4) left, top, right, bottom
    scores: np.ndarray  # (P,) 0 to 1
    keypoints: np.ndarray  # (P, 17, 3) px and confidence of COCO17's joints; 0 = not known


class PersonDetector(Protocol):
    """Finds people in pictures."""

    name: str  # as `detector.people` says it

    def __call__(self, image: np.ndarray) -> People:
        """
        Args:
            image: (H, W, 3) uint8 BGR.
        """
        ...

    def fingerprint(self) -> str:
        """Tells its weights from others, for files of detections."""
        ...


class MultiposePeople:
    """A `PersonDetector` by MoveNet multipose: six people at most, with joints."""

    name = "movenet"

    def __init__(self, path: str | Path | None = None) -> None:
        """
        Args:
            path: weights that ``scripts/convert_movenet.py`` wrote; None: the shipped ones.

        Raises:
            UserError: a missing or corrupt file, or weights of another network.
        """
        self.network = load_multipose(path)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> People:
        """See `PersonDetector`."""
        scale = LONGER_SIDE / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        shrunk = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        below, right = -height % COARSEST, -width % COARSEST
        padded = cv2.copyMakeBorder(shrunk, 0, below, 0, right, cv2.BORDER_CONSTANT)
        picture = torch.from_numpy(padded[:, :, ::-1].copy()).permute(2, 0, 1)[None].float()
        boxes, scores, xy, confidence = (part[0].numpy() for part in self.network(picture))
        factor = np.array([image.shape[1] / width, image.shape[0] / height])
        keypoints = np.concatenate([(xy + 0.5) * factor - 0.5, confidence[..., None]], -1)
        there = scores >= LEAST_SCORE
        return People(boxes[there] * np.tile(factor, 2), scores[there], keypoints[there])

    def fingerprint(self) -> str:
        return f"{checkpoint.digest(self.network)} {LONGER_SIDE} px"


class RtmPeople:
    """A `PersonDetector` by a YOLOX of rtmlib: boxes only."""

    name = "rtmlib"

    def __init__(self, weights: str | None = None) -> None:
        """
        Args:
            weights: an ONNX file, or an address that rtmlib downloads; None: its YOLOX-m.

        Raises:
            UserError: rtmlib is not installed, or the file is no such network.
        """
        opened = open_onnx(weights, PEOPLE, "people_weights")
        rtmlib, path, session, self._fingerprint = opened
        size = tuple(session.get_inputs()[0].shape[-2:])
        self.network = rtmlib.YOLOX(str(path), size, score_thr=RTM_SCORE, backend="onnxruntime")

    def __call__(self, image: np.ndarray) -> People:
        """See `PersonDetector`."""
        boxes = np.reshape(self.network(image), (-1, 4)).astype(float)
        return People(boxes, np.ones(len(boxes)), np.zeros((len(boxes), 17, 3)))

    def fingerprint(self) -> str:
        return self._fingerprint
