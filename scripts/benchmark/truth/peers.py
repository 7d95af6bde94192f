"""Peers: detectors that need an environment of their own, and exchange files with us.

We write crops, they answer with points and a visibility (`scripts/peer_mediapipe.py`). So a user of
`ptri.estimate_rig` has them: nothing is known of their errors, and covariances are NaN here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from detector_errors.multipose import pictures, without_covariance
from torch import Tensor

from ptri.data.annotations import read_json
from ptri.errors import UserError
from ptri.evaluation import draw
from ptri.skeleton import COCO17
from ptri.structures import UNKNOWN_DETECTOR, Keypoints

PEER_SIZE, PEER_SCALE = 256, 1.25  # px, side of the crops for peers; over the person's box


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
