"""A tiny data set in the Human3.6M layout: coloured dots at the projected joints."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ptri.data.labels import NPY_NAME, Labels, write_npy

CAMERA_NAMES = ("54138969", "55011271", "58860488", "60457274")
# mm, x right, y up, z towards the front, in the order of ptri.skeleton.H36M17
STANDING = np.array([
    [-130, 60, 0], [-130, 480, 20], [-130, 920, 0], [130, 920, 0], [130, 480, 20], [130, 60, 0],
    [0, 930, 0], [0, 1170, -10], [0, 1430, 0], [0, 1680, 20],
    [-380, 930, 60], [-330, 1150, 20], [-180, 1410, 0],
    [180, 1410, 0], [330, 1150, 20], [380, 930, 60], [0, 1540, 60],
], np.float64)  # fmt: skip
COLORS = [(37 * j % 200 + 55, 91 * j % 200 + 55, 53 * j % 200 + 55) for j in range(17)]  # BGR


def ring_cameras(num_subjects: int, size: int, dist=(0, 0, 0, 0, 0)):
    """K, dist, R, t of four cameras around the origin, world z up, another rig per subject."""
    K = np.zeros((num_subjects, 4, 3, 3))
    R, t = np.zeros((num_subjects, 4, 3, 3)), np.zeros((num_subjects, 4, 3))
    for s, c in np.ndindex(num_subjects, 4):
        focal = size * (1.25 + 0.02 * c)
        K[s, c] = [[focal, 0, size / 2 + c], [0, focal * 0.998, size / 2 - c], [0, 0, 1]]
        angle = np.pi / 2 * c + 0.4 + 0.1 * s
        centre = np.array([4000 * np.cos(angle), 4000 * np.sin(angle), 1500.0])
        forward = np.array([0, 0, 900.0]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        R[s, c] = [right, np.cross(forward, right), forward]
        t[s, c] = -R[s, c] @ centre
    return K, np.tile(np.array(dist, float), (num_subjects, 4, 1)), R, t


def make_tiny_h36m(
    root: Path,
    subjects: tuple[str, ...] = ("S1", "S9"),
    actions: tuple[str, ...] = ("Greeting-2", "Walking-1"),
    num_frames: int = 3,
    size: int = 128,
    dist=(0, 0, 0, 0, 0),
    folder: str = "imageSequence-undistorted",
    frame_step: int = 5,
) -> Labels:
    """Writes images and the .npy labels under ``root``.

    Args:
        dist: (5,) distortion with which the images are drawn (for ``folder="imageSequence"``).
        frame_step: frames are labelled 0, frame_step, 2 frame_step, ...
    """
    K, dist, R, t = ring_cameras(len(subjects), size, dist)
    numbers = list(np.ndindex(len(subjects), len(actions), num_frames))
    joints = np.zeros((len(numbers), 17, 3))
    boxes = np.zeros((len(numbers), 4, 4), np.int16)
    standing = np.stack([STANDING[:, 0], -STANDING[:, 2], STANDING[:, 1]], 1)  # z up
    for n, (s, a, f) in enumerate(numbers):
        turn = cv2.Rodrigues(np.array([0, 0, 0.5 * f + 0.3 * a + 0.2 * s]))[0]
        joints[n] = standing @ turn.T + [100 * f, 50 * a, 0]
        for c, name in enumerate(CAMERA_NAMES):
            rotation = cv2.Rodrigues(R[s, c])[0]
            xy = cv2.projectPoints(joints[n], rotation, t[s, c], K[s, c], dist[s, c])[0][:, 0]
            image = np.zeros((size, size, 3), np.uint8)
            for point, color in zip(xy, COLORS):
                centre = tuple(np.rint(point * 16).astype(int).tolist())
                cv2.circle(image, centre, 16 * size // 60, color, -1, cv2.LINE_AA, 4)
            path = root / "processed" / subjects[s] / actions[a] / folder / name
            path.mkdir(parents=True, exist_ok=True)
            file = path / f"img_{f * frame_step + 1:06d}.jpg"
            cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
            left, top = np.floor(xy.min(0)) - size // 16
            right, bottom = np.ceil(xy.max(0)) + size // 16
            boxes[n, c] = top, left, bottom, right
    subject, action, frame = np.array(numbers).T
    labels = Labels(
        subject_names=subjects, camera_names=CAMERA_NAMES, action_names=actions,
        K=K, dist=dist, R=R, t=t, subject=subject.astype(np.int16), action=action.astype(np.int16),
        frame=(frame * frame_step).astype(np.int32), joints=joints.astype(np.float32), boxes=boxes,
    )  # fmt: skip
    write_npy(root / "extra" / NPY_NAME, labels)
    return labels
