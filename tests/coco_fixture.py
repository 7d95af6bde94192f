"""Photographs as COCO lays them out: smooth pictures with a coloured dot at each body joint."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from ptri import config
from ptri.data.annotations import COCO_ROWS

# BGR, of the 12 joints that are ours too
COLORS = [(40 + 61 * j % 216, 255 - 83 * j % 200, 30 + 97 * j % 226) for j in range(12)]
SIZE = (200, 150)  # px: width, height
# Nothing that changes an image or a crop.
PLAIN = [f"augment.{name}=0" for name in ("color", "scale", "shift", "rotation_deg", "blur")]
PLAIN += ["augment.noise=0", "augment.jpeg=0", "augment.occluder=0"]
BOX = [20.25, 10.5, 100.5, 120.0]  # px: x, y, width, height


def draw_person(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (150, 200, 3) BGR and its person's keypoints (17, 3)."""
    image = cv2.resize(rng.integers(0, 40, (9, 12, 3)).astype(np.uint8), SIZE)
    points = np.c_[rng.integers(30, 110, (17, 2)), np.full(17, 2)]
    for row, color in zip(COCO_ROWS, COLORS):
        cv2.circle(image, points[row, :2].tolist(), 4, color, -1)
    return image, points


def make_coco(root: Path, train: int = 6, val: int = 3, seed: int = 0) -> None:
    """Writes annotations and images of both splits; each image has one person."""
    rng = np.random.default_rng(seed)
    for split, count in (("train2017", train), ("val2017", val)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            image, points = draw_person(rng)
            name = f"{number:012d}.jpg"
            cv2.imwrite(str(root / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
            images.append({"id": 70 + number, "file_name": name})
            annotations.append(
                {
                    "image_id": 70 + number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": BOX,
                    "keypoints": points.ravel().tolist(),
                    "segmentation": [[1, 2, 3]],
                }
            )
        write(root, split, images, annotations)


def annotations_of(root: Path, split: str = "train2017") -> Path:
    """The file of a split."""
    return root / "annotations" / f"person_keypoints_{split}.json"


def write(root: Path, split: str, images: list, annotations: list) -> None:
    """The file of a split with this content."""
    path = annotations_of(root, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def settings(out, *overrides):
    return config.load(
        None,
        [
            "run.name=two",
            f"run.out={out}",
            "run.device=cpu",
            "run.threads=1",
            "data.kind=coco",
            "data.image_size=64",
            "data.workers=0",
            "data.crop_scale=1.1",
            "data.train_subjects=[1]",
            "data.test_subjects=[9]",
            "train.batch_size=8",
            "train.epochs=1",
            "train.warmup_steps=5",
            "evaluate.pictures=1",
            "augment.occluder=0",
            *overrides,
        ],
    )


def coco_settings(root, *overrides):
    return settings(root, f"data.root={root}", *overrides)
