"""The pictures whose outputs by the original MoveNet graphs were recorded.

python tests/movenet_fixture.py FOLDER writes them for scripts/record_movenet.mjs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ptri.data import transforms

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = Path(__file__).with_name("movenet_outputs.json")
PHOTOS = ROOT.parent / "shared/data/coco_mini"
DEMO = [
    f"data/demo/processed/{scene}/imageSequence-undistorted/54138969/img_000001.jpg"
    for scene in (
        *("S1/Directions-1", "S1/Walking-1", "S11/Directions-1"),
        *("S11/Walking-1", "S9/Directions-1", "S9/Walking-1"),
    )
]


def drawn_pictures() -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, model, and RGB uint8 picture: rendered people, several beside each other, noise."""
    people = [transforms.read_image(ROOT / path, 2)[:, :, ::-1] for path in DEMO]
    for number, picture in enumerate(people):
        yield f"demo{number}", "thunder", picture
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    noise = cv2.resize(noise, (256, 256), interpolation=cv2.INTER_CUBIC)
    yield "noise", "thunder", noise
    yield "noise of several", "multipose", noise
    yield "three beside each other", "multipose", np.concatenate(people[:3], 1)
    yield "one of several", "multipose", people[3]


def photographs() -> Iterator[tuple[str, str, np.ndarray]]:
    """The same of photographs that are not in this repository."""
    persons = json.loads((PHOTOS / "persons.json").read_text())
    for number in range(0, len(persons), 5):
        x, y, width, height = persons[number]["bbox"]
        image = cv2.imread(str(PHOTOS / persons[number]["image"]))[:, :, ::-1]
        scale = 256 / max(width, height)
        matrix = np.array([[scale, 0, -scale * x], [0, scale, -scale * y]])
        yield f"person {number}", "thunder", cv2.warpAffine(image, matrix, (256, 256))
    for name in sorted({person["image"] for person in persons})[:4]:
        image = cv2.imread(str(PHOTOS / name))[:, :, ::-1]
        size = [side // 2 // 32 * 32 for side in image.shape[1::-1]]
        yield name, "multipose", cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, model, picture in [*drawn_pictures(), *photographs()]:
        height, width = picture.shape[:2]
        entries.append({"name": name, "model": model, "height": height, "width": width})
        file = folder / f"{name}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.ascontiguousarray(picture).tofile(file)
    (folder / "list.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
