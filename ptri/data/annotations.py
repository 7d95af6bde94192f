"""Files of persons in photographs: COCO's annotations, plain lists, boxes alone.

Boxes are COCO's: x, y, width, height in px of a continuous plane whose pixel i spans i to i + 1,
hence tight around the visible part of a person. Keypoints are taken as pixel indices.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptri.errors import UserError
from ptri.skeleton import COCO17, H36M17

log = logging.getLogger(__name__)

# COCO joints that our 17 have as well; H36M's "foot" is the ankle. Its "nose" lies inside the head
# and its "head" on top of it: COCO's nose, eyes and ears have no counterpart.
JOINTS = tuple(name for name in COCO17.joints[5:])
COCO_ROWS = [COCO17.joints.index(name) for name in JOINTS]
OUR_ROWS = [H36M17.joints.index(name.replace("ankle", "foot")) for name in JOINTS]
MIN_SIDE = 32.0  # px, longer side of a box; smaller persons are left out
PREFIX = "person_keypoints_"  # of COCO's files of annotations
_BOX_COLUMNS = ["image", "x", "y", "width", "height"]


class Persons(NamedTuple):
    """N persons in photographs."""

    images: list[str]  # paths of the photographs
    photo: np.ndarray  # (N,) int64, which of them
    number: np.ndarray  # (N,) int64, place in the file of annotations
    box: np.ndarray  # (N, 4) px: x, y, width, height; NaN: the whole photograph
    keypoints: np.ndarray  # (N, 17, 3) COCO's order: x, y px, 0 not labelled, 1 hidden, 2 visible

    def rows(self, chosen: np.ndarray | slice) -> Persons:
        """Some of the persons."""
        return Persons(self.images, *(part[chosen] for part in self[1:]))


def choose_persons(path: str | Path, min_keypoints: int) -> Persons:
    """The persons of a file who can be learned from; how many cannot is logged.

    Args:
        path: as `read_persons` takes it.
        min_keypoints: persons with fewer labelled ones of COCO's 17 are left out, and those
            without any of `JOINTS`; 0: labels are not needed.

    Raises:
        UserError: as `read_persons`; nobody left.
    """
    path = Path(path)
    state = path.stat() if path.exists() else None
    version = state and (state.st_mtime_ns, state.st_size)
    persons, crowds = read_persons(path, _image_folder(path), min_keypoints > 0, version)
    labelled = persons.keypoints[..., 2] > 0
    few = labelled.sum(1) < min_keypoints
    face = ~labelled[:, COCO_ROWS].any(1) & (min_keypoints > 0) & ~few
    small = (persons.box[:, 2:].max(1) < MIN_SIDE) | (persons.box[:, 2:].min(1) < 1)
    chosen = persons.rows(~few & ~face & ~small)
    reasons = {
        "crowds": crowds,
        f"with fewer than {min_keypoints} labelled keypoints": int(few.sum()),
        "with labels in the face only": int(face.sum()),
        f"in a box of less than {MIN_SIDE:g} px": int((small & ~few & ~face).sum()),
    }
    left_out = "; ".join(f"{count} {why}" for why, count in reasons.items() if count)
    message = f"{path}: {len(chosen.photo)} of {len(persons.photo) + crowds} persons"
    if not len(chosen.photo):
        advice = "; lower data.min_keypoints" if few.any() else ""
        raise UserError(f"{message}: {left_out or 'the file is empty'}{advice}")
    log.info("%s%s", message, f"; left out: {left_out}" if left_out else "")
    return chosen


@functools.lru_cache(maxsize=4)
def read_persons(
    path: Path, folder: Path, labelled: bool = True, version: object = None
) -> tuple[Persons, int]:
    """The persons of a file, and how many crowds it has besides, which are none.

    Args:
        path: COCO's annotations (category 1), a list of {image, bbox, keypoints}, or a .csv file of
            boxes.
        folder: of the images.
        labelled: persons must have keypoints. version: of the file, which is read once for each.

    Raises:
        UserError: unreadable or not of this format.
    """
    crowds = 0
    if path.suffix == ".csv":
        entries = _read_boxes(path)
    else:
        entries = read_json(path, _without_outline)
    if isinstance(entries, dict):
        entries, crowds = _coco_entries(path, entries)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of persons or COCO's annotations")
    try:  # all at once
        images = [os.path.join(folder, entry["image"]) for entry in entries]
        box = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        points = [entry["keypoints"] for entry in entries] if labelled else []
        keypoints = np.array(points, np.float64).reshape(-1, 17, 3)
        whole = np.isfinite(box).all() and np.isfinite(keypoints).all()
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:  # one by one, to name the one that is wrong
        boxes, points = [], []
        for index, entry in enumerate(entries):
            of_one = _parse(f"{path}: person {index}", entry, labelled)
            boxes.append(of_one[0])
            points.append(of_one[1])
        box, keypoints = np.stack(boxes), np.stack(points)
    return make_persons(images, box, keypoints if labelled else None), crowds


def read_json(path: str | Path, hook: Callable[[dict], Any] | None = None, advice: str = "") -> Any:
    """What a JSON file holds; a UserError, which may end with advice, where it cannot be read."""
    try:
        return json.loads(Path(path).read_bytes(), object_hook=hook)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}{advice}") from None
    except ValueError as error:  # also bytes that are no text
        raise UserError(f"{path}: truncated or no JSON: {error}{advice}") from None


def make_persons(images: list[str], box: np.ndarray, keypoints: np.ndarray | None) -> Persons:
    """Persons of their photographs' paths (N), boxes (N, 4) and keypoints (N, 17, 3) or none."""
    names = list(dict.fromkeys(images))
    place = {name: number for number, name in enumerate(names)}
    photo = np.array([place[name] for name in images], np.int64)
    if keypoints is None:
        keypoints = np.zeros((len(images), 17, 3))
    return Persons(names, photo, np.arange(len(images)), box, keypoints)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Drops what makes COCO's files large, before it takes memory."""
    entry.pop("segmentation", None)
    return entry


def _coco_entries(path: Path, content: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        people = [
            {**entry, "image": names[entry["image_id"]]}
            for entry in content["annotations"]
            if entry.get("category_id", 1) == 1 and "keypoints" in entry
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected COCO's images (id, file_name) and annotations (image_id, bbox, "
            f"keypoints): {type(error).__name__} {error}"
        ) from None
    persons = [entry for entry in people if not entry.get("iscrowd")]
    return persons, len(people) - len(persons)


def _parse(where: str, entry: Any, labelled: bool) -> tuple[np.ndarray, np.ndarray]:
    """The box (4,) and keypoints (17, 3) of an entry; UserError if it is no person."""
    try:
        os.path.join("", entry["image"])
        box = np.array(entry["bbox"], np.float64)
        keypoints = np.array(entry["keypoints"] if labelled else [], np.float64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {type(error).__name__} {error}; expected image, bbox [x, y, width, height] "
            "and keypoints, 17 times x, y, v"
        ) from None
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UserError(f"{where}: bbox {entry['bbox']}: expected x, y, width, height in px")
    if labelled and (len(keypoints) != 17 or not np.isfinite(keypoints).all()):
        raise UserError(f"{where}: {len(keypoints)} keypoints, expected 17 times x, y, v")
    return box, keypoints


def _read_boxes(path: Path) -> list[dict[str, Any]]:
    """The entries of a .csv file of boxes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    reader = csv.DictReader(lines)
    if [name.strip().lower() for name in reader.fieldnames or ()] != _BOX_COLUMNS:
        raise UserError(f"{path}: the first line must be {','.join(_BOX_COLUMNS)}")
    reader.fieldnames = _BOX_COLUMNS
    return [
        {"image": row["image"], "bbox": [row[name] or "" for name in _BOX_COLUMNS[1:]]}
        for row in reader
    ]


def _image_folder(path: Path) -> Path:
    """Where a file's images are: beside it, or of COCO's as it ships beside its folder."""
    name, root = path.stem.removeprefix(PREFIX), path.parent.parent
    if path.parent.name != "annotations" or name == path.stem:
        return path.parent
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise UserError(f"{root / name}: no such folder; extract COCO's {name}.zip into {root}")
