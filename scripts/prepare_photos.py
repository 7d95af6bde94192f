"""Makes pictures of people ready for `data.kind: photos`: finds the persons, writes boxes.json.

    python scripts/prepare_photos.py data/photos                     # pictures that are there
    python scripts/prepare_photos.py data/photos --videos a.mp4 b.mp4 --every 10   # and frames

Frames of videos become data/photos/<video>/<frame>.jpg. Pictures are taken as they are stored: what
a camera only marked as turned (EXIF) has to be turned before. Train on them with a detector as
teacher: configs/photos_2d.yaml.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ptri.checkpoint import replacing
from ptri.data.coco import PHOTOS
from ptri.data.transforms import read_image
from ptri.detectors.people import MultiposePeople
from ptri.errors import UserError, exit_status

LEAST_SIDE = 64  # px of a box's longer side: a smaller person teaches nothing
QUALITY = 95  # of JPEG


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of pictures; made where --videos are given")
    parser.add_argument("--videos", nargs="+", default=[], metavar="FILE", help="take frames first")
    parser.add_argument("--every", type=int, default=10, help="one frame of so many")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(run(Path(args.folder), args.videos, args.every)))


def run(folder: Path, videos: list[str], every: int) -> str:
    """Extracts frames, finds people, writes boxes.json; returns what was found.

    Raises:
        UserError: no such folder, unreadable videos, nobody in any picture.
    """
    if every < 1:
        raise UserError(f"--every: {every}; expected 1 or more")
    names = [Path(video).stem for video in videos]
    if len(set(names)) < len(names):
        raise UserError(f"--videos: two of the same name: {', '.join(names)}; rename one")
    for video, name in zip(videos, names):
        extract(Path(video), folder / name, every)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS)
    people, entries, unreadable = MultiposePeople(), [], 0
    for path in tqdm(pictures, "find people", unit="picture", disable=None):
        try:
            image = read_image(path)  # as training reads it
        except UserError:
            unreadable += 1
            continue
        for left, top, right, bottom in people(image).boxes.round(1).tolist():
            if max(right - left, bottom - top) >= LEAST_SIDE:
                box = [left, top, round(right - left, 1), round(bottom - top, 1)]
                entries.append({"image": str(path.relative_to(folder)), "bbox": box})
    if not entries:
        raise UserError(f"{folder}: nobody was found in {len(pictures)} pictures")
    with replacing(folder / "boxes.json") as temporary:
        temporary.write_text(json.dumps(entries, indent=0) + "\n")
    seen = len({entry["image"] for entry in entries})
    text = f"{folder}/boxes.json: {len(entries)} persons in {seen} of {len(pictures)} pictures"
    return text + (f"; {unreadable} could not be read" if unreadable else "")


def extract(video: Path, folder: Path, every: int) -> None:
    """Writes every n-th frame of a video as a picture.

    Raises:
        UserError: no video that can be read.
    """
    capture, number = cv2.VideoCapture(str(video)), 0
    total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    with tqdm(total=total, desc=video.name, unit="frame", disable=None) as bar:
        while capture.grab():
            if number % every == 0:
                there, image = capture.retrieve()
                if there:
                    _write(folder / f"{number:06d}.jpg", image)
            number += 1
            bar.update()
    if not number:
        raise UserError(f"{video}: not a video that OpenCV can read; convert it to H.264 .mp4")


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
        raise UserError(f"{path}: cannot be written")


if __name__ == "__main__":
    raise SystemExit(main())
