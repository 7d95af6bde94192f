"""The networks of rtmlib (RTMPose, RTMO, ViTPose), whatever ONNX file holds them.

rtmlib is an extra: its code is Apache-2.0, the weights that it downloads have terms of their own.
What a file is shows in its outputs: two lists of coordinates (RTMPose), boxes and persons (RTMO),
or heatmaps (ViTPose). rtmlib tells scores but no covariances; a usual one stands in for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri.data.transforms import denormalise
from ptri.errors import UserError
from ptri.skeleton import COCO17, HALPE26
from ptri.structures import UNKNOWN_DETECTOR, Keypoints

SKELETONS = {len(skeleton.joints): skeleton for skeleton in (COCO17, HALPE26)}
NOISE = 0.012  # standard deviation of a keypoint of score 1 over the longer side of the box
LEAST_SCORE = 0.1  # below it covariances grow no further
SEEN = 0.3  # score of points that the second look's box is drawn around
FEWEST = 4  # such points that it takes
MARGIN = 1.1  # of that box; rtmlib adds its own
LEAST_BOX = 0.25  # of the crop's side: its sides are at least so long


# What rtmlib downloads where no file is named: of `rtmlib.BodyWithFeet.MODE["balanced"]`.
POSE, PEOPLE = "pose", "det"


def open_onnx(weights: str | None, usual: str, setting: str) -> tuple:
    """Opens a network of rtmlib.

    Args:
        weights: an ONNX file, or an address that rtmlib downloads; None: its usual one.
        usual: `POSE` or `PEOPLE`. setting: of section detector, for messages.

    Returns:
        The module rtmlib, the file's path, its session, and what tells it from other files.

    Raises:
        UserError: rtmlib is not installed, or the file cannot be opened.
    """
    try:
        import onnxruntime
        import rtmlib
        from rtmlib.tools.file import download_checkpoint
    except ImportError as error:
        name = "name" if usual == POSE else "people"
        raise UserError(
            f"detector.{name}: rtmlib: no module {error.name!r}; install it by `make rtm`, or "
            "`pip install onnxruntime` and `pip install --no-deps rtmlib`"
        ) from None
    weights = weights or rtmlib.BodyWithFeet.MODE["balanced"][usual]
    try:
        address = weights.startswith(("http:", "https:"))
        path = Path(download_checkpoint(weights) if address else weights)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        fingerprint = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except Exception as error:  # of the network, the disk, or ONNX Runtime's many
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"detector.{setting}: {weights}: {reason}; expected an ONNX file of a network of "
            "rtmlib, or an address of one"
        ) from None
    return rtmlib, path, session, fingerprint


class RtmDetector:
    """A `ptri.detectors.protocol.PoseDetector` by a network of rtmlib."""

    name = "rtmlib"
    image_size = 384
    crop_scale = 1.25
    known = UNKNOWN_DETECTOR

    def __init__(self, weights: str | None, device: torch.device) -> None:
        """
        Args:
            weights: an ONNX file, or an address that rtmlib downloads; None: its RTMPose-m with
                feet (Halpe's 26 joints).

        Raises:
            UserError: rtmlib is not installed, or the file is none of its networks.
        """
        rtmlib, path, session, self._fingerprint = open_onnx(weights, POSE, "weights")
        shapes = [output.shape for output in session.get_outputs()]
        num_joints, kind = _what_it_is(shapes, rtmlib)
        if num_joints not in SKELETONS:
            raise UserError(
                f"detector.weights: {path}: outputs {shapes}; expected RTMPose, RTMO or ViTPose "
                f"with {' or '.join(map(str, SKELETONS))} joints"
            )
        self.skeleton = SKELETONS[num_joints]
        height, width = session.get_inputs()[0].shape[-2:]
        self.one_stage = kind is rtmlib.RTMO
        size = (height, width) if self.one_stage else (width, height)
        options = {"score_thr": SEEN} if self.one_stage else {}
        self.network = kind(
            str(path), model_input_size=size, backend="onnxruntime", device=device.type, **options
        )

    def __call__(self, images: Tensor) -> Keypoints:
        """See `PoseDetector`."""
        look = self._of_several if self.one_stage else self._of_one
        # rtmlib takes one picture at a time, BGR.
        said = [look(denormalise(image.cpu().numpy())[:, :, ::-1]) for image in images]
        xy, score = (torch.tensor(np.stack(part)).float() for part in zip(*said))
        score = score.clamp(0, 1)
        deviation = NOISE * self.image_size / self.crop_scale / score.clamp_min(LEAST_SCORE)
        covariance = deviation.square()[..., None, None] * torch.eye(2)
        return Keypoints(*(part.to(images.device) for part in (xy, covariance, score)))

    def _of_one(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (J, 2) and scores (J,): of the crop, then of the box around what was found."""
        side = len(picture)
        margin = side * (1 - 1 / self.crop_scale) / 2
        box = np.array([margin, margin, side - margin, side - margin])
        xy, score = (part[0] for part in self.network(picture, bboxes=[box]))
        seen = xy[score >= SEEN]
        if len(seen) < FEWEST:
            return xy, score
        low, high = seen.min(0), seen.max(0)
        middle = (low + high) / 2
        half = np.maximum(MARGIN * (high - low), LEAST_BOX * side) / 2
        box = np.concatenate([middle - half, middle + half])
        return tuple(part[0] for part in self.network(picture, bboxes=[box]))

    def _of_several(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the person that is surest and most central."""
        xy, score = self.network(picture)  # (P, J, 2), (P, J)
        away = np.linalg.norm(xy.mean(1) - len(picture) / 2, axis=-1) / len(picture)
        best = int((score.mean(1) * (1 - away)).argmax())
        return xy[best], score[best]

    def fingerprint(self) -> str:
        return self._fingerprint


def _what_it_is(shapes: list[list], rtmlib) -> tuple[int, Callable | None]:
    """Number of joints and rtmlib's class of a network with outputs of these shapes."""
    dimensions = [len(shape) for shape in shapes]
    if dimensions == [3, 3] and shapes[0][1] == shapes[1][1]:
        return shapes[0][1], rtmlib.RTMPose
    if dimensions == [3, 4]:
        return shapes[1][2], rtmlib.RTMO
    if dimensions == [4]:
        return shapes[0][1], rtmlib.ViTPose
    return 0, None
