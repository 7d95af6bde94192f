"""Drawn videos: a person of coloured dots before a still background, and a detector of dots."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from fake_model import FakeDetection, FakeModel, detection
from recording_fixture import NAMES, body, seen_by_ring, write_cameras
from torch import Tensor

from ptri import config
from ptri.data.transforms import denormalise
from ptri.detectors.people import People
from ptri.skeleton import COCO17, H36M17
from ptri.structures import Keypoints

SIZE = 480  # px, square pictures
RADIUS = 5  # px of a dot
DIST = (-0.3, 0.1, 0.002, -0.002, 0.0)
# Bright colours that no two joints and no grey background share.
HSV = [[10 * j + 4, 255, 120 + 130 * (j % 2)] for j in range(17)]
COLOURS = cv2.cvtColor(np.uint8([HSV]), cv2.COLOR_HSV2BGR)[0].astype(np.float64)
SATURATED = 90  # of 255, difference of the largest and the least channel: a dot


def settings(root, *extra: str) -> config.Config:
    """Of the recording of videos in a folder."""
    common = ("run.name=test", "data.kind=videos", f"data.root={root}", "data.image_size=192")
    return config.load(None, [*common, "evaluate.pictures=1", *extra])


def write_video(path: Path, images, fps: float = 25.0, codec: str = "FFV1", size=None) -> None:
    """A lossless video (of FFV1; mp4v is not); size: where there are no images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = list(images)
    size = size or images[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    assert writer.isOpened(), f"this OpenCV cannot write {codec}"
    for image in images:
        writer.write(image)
    writer.release()


def write_timed(path: Path, times: np.ndarray, fps: float) -> None:
    """An .mp4 of grey frames with timestamps (s) of its own, as phones write; grey tells the time.

    Args:
        fps: that the file states.
    """
    images = [np.full((48, 64, 3), round(30 + 100 * time), np.uint8) for time in times]
    write_video(path, images, fps, "mp4v")
    data = bytearray(path.read_bytes())
    start = data.index(b"stts") - 4
    old = int.from_bytes(data[start : start + 4], "big")
    ticks = int.from_bytes(data[start + 20 : start + 24], "big") * fps  # a second
    steps = np.diff(times, append=times[-1] + 1 / fps) * ticks
    words = [24 + 8 * (len(steps) - 1), 0, 0, len(steps)]
    table = b"".join(word.to_bytes(4, "big") for word in words)
    table += b"".join((1).to_bytes(4, "big") + round(s).to_bytes(4, "big") for s in steps)
    table = table[:4] + b"stts" + table[8:]
    data[start : start + old] = table
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):  # boxes that hold it
        place = data.rindex(name, 0, start) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(table) - old
        data[place : place + 4] = size.to_bytes(4, "big")
    path.write_bytes(bytes(data))


def write_grey(path: Path, frames: int = 3, size: int = SIZE, fps: float = 25.0) -> None:
    """A video in which nothing happens."""
    write_video(path, [np.full((size, size, 3), 90, np.uint8)] * frames, fps)


def make_grey(root: Path) -> Path:
    """Three grey frames of four cameras."""
    K = np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1.0]])
    write_cameras(root, SIZE, [K] * 4, DIST, [np.eye(3)] * 4, [np.zeros(3)] * 4)
    for name in NAMES:
        write_grey(root / f"videos/{name}.avi")
    return root


def draw_person(image: np.ndarray, xy: np.ndarray, radius: int = RADIUS) -> None:
    """Grey limbs and a dot of its own colour at each of the 17 joints."""
    fixed = [tuple(int(v) for v in np.round(16 * point)) for point in xy]
    for child, parent in H36M17.bones:
        cv2.line(image, fixed[child], fixed[parent], (210, 210, 210), 2 * radius, cv2.LINE_8, 4)
    for joint, centre in enumerate(fixed):
        colour = tuple(int(value) for value in COLOURS[joint])
        cv2.circle(image, centre, radius << 4, colour, -1, cv2.LINE_8, 4)


def make_videos(root: Path, num_frames: int = 16, bystander: bool = False) -> dict:
    """Writes ``root``; returns K, R, t, and joints as drawn (T, V, 17, 2) px, distorted.

    The bystander is a smaller person who moves, in a corner of the first two views.
    """
    K, R, t, drawn = seen_by_ring(SIZE, body(num_frames), DIST)
    rng = np.random.default_rng(0)
    for v, name in enumerate(NAMES):
        background = rng.integers(60, 90, (SIZE, SIZE, 1), np.uint8).repeat(3, 2)
        images = []
        for f, xy in enumerate(drawn[:, v]):
            image = background.copy()
            if bystander and v < 2:
                small = 0.45 * (xy - xy.mean(0)) + [60 + 2 * f, 70]
                draw_person(image, small, 2)
            draw_person(image, xy)
            images.append(image)
        write_video(root / "videos" / f"{name}.avi", images)
    write_cameras(root, SIZE, K, DIST, R, t)
    return {"K": K, "R": R, "t": t, "drawn": drawn}


class DotFinder:
    """A person detector: whatever hangs together is a person."""

    name = "dots"

    def __call__(self, image: np.ndarray) -> People:
        bright = image.max(-1) > 110  # limbs and dots; the background has at most 90
        count, labels = cv2.connectedComponents(bright.astype(np.uint8))
        boxes, keypoints = [], np.zeros((count - 1, 17, 3))
        for number in range(1, count):
            ys, xs = np.nonzero(labels == number)
            boxes.append([xs.min() - 12, ys.min() - 12, xs.max() + 13, ys.max() + 13])
            away = np.linalg.norm(image[ys, xs][:, None] - COLOURS, axis=-1)
            for joint in ("left_shoulder", "right_shoulder", "left_hip", "right_hip"):
                index = H36M17.joints.index(joint)
                own = (away.argmin(1) == index) & (away[:, index] < 60)
                if own.any():
                    place = xs[own].mean(), ys[own].mean(), 1.0
                    keypoints[number - 1, COCO17.joints.index(joint)] = place
        return People(np.reshape(boxes, (-1, 4)).astype(float), np.ones(count - 1), keypoints)

    def fingerprint(self) -> str:
        return "dots"


class DotModel(FakeModel):
    """Finds the dots of `draw_person`; surest of people who stand upright and fill the image."""

    def detect(self, images: Tensor) -> FakeDetection:
        N, size = len(images), images.shape[-1]
        xy, confidence = torch.full((N, 17, 2), size / 2), torch.full((N, 17), 0.05)
        for n, image in enumerate(images):
            pixels = denormalise(image.numpy())[:, :, ::-1].astype(np.float64)  # BGR
            ys, xs = np.nonzero(np.ptp(pixels, axis=-1) > SATURATED)
            if not len(xs):
                continue
            away = np.linalg.norm(pixels[ys, xs][:, None] - COLOURS, axis=-1)
            joint, near = away.argmin(1), away.min(1) < 60
            for j in np.unique(joint[near]):
                dot = near & (joint == j)
                xy[n, j] = torch.tensor([np.median(xs[dot]), np.median(ys[dot])])
                confidence[n, j] = 0.9
            trunk = (xy[n, 8] - xy[n, 6]).double()
            upright = float(-trunk[1] / trunk.norm().clamp_min(1e-6))
            confidence[n] *= 0.5 + 0.5 * max(upright, 0.0)
        covariance = torch.diag(torch.tensor([4.0, 1.0])).expand(N, 17, 2, 2)
        return detection(images, Keypoints(xy, covariance, confidence))
