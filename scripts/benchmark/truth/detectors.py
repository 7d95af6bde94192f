"""Who finds the keypoints of rendered people, by name.

``movenet`` and ``ours`` come with their covariances and what is known of their errors. The others
come as a user of `ptri.estimate_rig` has them: points and confidence, and nothing known
(covariances are NaN here): ``multipose``, MoveNet's smaller network for several persons;
``NAME-unknown``, the same detector without what is known of it; and peers, which need an
environment of their own and exchange files with us (`scripts/peer_mediapipe.py`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from detector_errors.named import named_detector
from torch import Tensor, nn

from ptri import checkpoint
from ptri.data.annotations import read_json
from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.detectors.multipose import load_multipose
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.evaluation import draw
from ptri.skeleton import COCO17
from ptri.structures import UNKNOWN_DETECTOR, Keypoints

UNKNOWN = "-unknown"
PEER_SIZE, PEER_SCALE = 256, 1.25  # px, side of the crops for peers; over the person's box


def make_detector(name: str) -> PoseDetector:
    """A detector by name, without "-unknown".

    Raises:
        UserError: no such detector.
    """
    return Multipose() if name == "multipose" else named_detector(name)


class Multipose(nn.Module):
    """MoveNet multipose as a detector of one person: of those in a crop whose box fills it best."""

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


class CropWriter:
    """A `PoseDetector` that finds nothing, and writes its crops for a peer, in their order."""

    name = "crops"
    skeleton = COCO17
    image_size, crop_scale = PEER_SIZE, PEER_SCALE
    known = UNKNOWN_DETECTOR

    def __init__(self, folder: Path, root: str) -> None:
        self.folder, self.root, self.names = folder, root, []

    def __call__(self, images: Tensor) -> Keypoints:
        for picture in pictures(images):
            self.names.append(crop_name(self.root, len(self.names)))
            image = picture.permute(1, 2, 0).round().byte().numpy()
            draw.save(image, self.folder / f"{self.names[-1]}.png")
        xy = torch.full((len(images), len(COCO17.joints), 2), torch.nan)
        return without_covariance(xy, torch.zeros(xy.shape[:2]))

    def fingerprint(self) -> str:
        return self.name


class Peer:
    """A `PoseDetector` that reads what a peer found in the crops, in their order."""

    skeleton = COCO17
    image_size, crop_scale = PEER_SIZE, PEER_SCALE
    known = UNKNOWN_DETECTOR

    def __init__(self, path: str | Path, root: str) -> None:
        """
        Args:
            path: JSON of a peer, whose name is the file's. root: name of the folder of images.

        Raises:
            UserError: unreadable, or made from other crops.
        """
        self.name, self.root, self.place, self.count = Path(path).stem, root, path, 0
        content = read_json(path)
        try:
            crops = float(content["size"]), float(content["crop_scale"])
            self.persons = dict(content["persons"])
            self.rows = [list(content["joints"]).index(name) for name in COCO17.joints]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: no peer's keypoints ({type(error).__name__} {error}); expected what "
                "scripts/peer_mediapipe.py writes"
            ) from None
        if crops != (PEER_SIZE, PEER_SCALE):
            raise UserError(f"{path}: made from other crops; write them with truth --write-crops")
        text = json.dumps([self.persons[k] for k in sorted(self.persons) if self._of_root(k)])
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def _of_root(self, key: str) -> bool:
        return key.rpartition("_")[0] == self.root

    def __call__(self, images: Tensor) -> Keypoints:
        names = [crop_name(self.root, self.count + row) for row in range(len(images))]
        self.count += len(images)
        said = np.full((len(images), len(COCO17.joints), 3), np.nan)
        for row, name in enumerate(names):
            if name not in self.persons:
                raise UserError(f"{self.place}: lacks {name}; write the crops again, and run it")
            if self.persons[name] is not None:
                said[row] = np.array(self.persons[name], float)[self.rows]
        said = torch.from_numpy(said).float()
        return without_covariance(said[..., :2], said[..., 2].nan_to_num(0.0).clamp(0, 1))

    def fingerprint(self) -> str:
        return self._fingerprint


def crop_name(root: str, number: int) -> str:
    return f"{root}_{number:05d}"


def write_names(folder: Path, names: list[str]) -> None:
    """``crops.json``, which a peer reads."""
    content = {"size": PEER_SIZE, "crop_scale": PEER_SCALE, "persons": names}
    (folder / "crops.json").write_text(json.dumps(content, indent=1))


def pictures(images: Tensor) -> Tensor:
    """Normalised images (N, 3, S, S) as RGB from 0 to 255."""
    mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
    return 255 * (images * std + mean)


def without_covariance(xy: Tensor, confidence: Tensor) -> Keypoints:
    return Keypoints(xy, torch.full((*xy.shape, 2), torch.nan), confidence)
