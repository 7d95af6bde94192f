"""The committed demo data: size, counts, and labels that fit the pictures.

That bones are rigid, people adult and rigs rings is tested where they are made.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ptri.config import DataConfig
from ptri.data import transforms
from ptri.data.index import Index
from ptri.data.labels import Labels
from ptri.data.multiview import build_index
from ptri.skeleton import H36M17

ROOT = Path(__file__).resolve().parents[1] / "data" / "demo"
SIZE = 512


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(DataConfig(root=str(ROOT)), "all")  # checks cameras and images


def project(labels: Labels, flip_world: bool = False) -> np.ndarray:
    """Pixels (N, V, 17, 2) of all joints in all views."""
    joints = labels.joints.astype(float) * ([-1, 1, 1] if flip_world else [1, 1, 1])
    rigs = zip(*(value[labels.subject] for value in (labels.K, labels.R, labels.t)))
    rows = [[transforms.project(p, *view) for view in zip(*rig)] for p, rig in zip(joints, rigs)]
    return np.array(rows)[..., :2]


def test_size_and_counts_and_images(index):
    files = [path for path in ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert index.labels.subject_names == ("S1", "S9", "S11")
    assert index.labels.camera_names == ("54138969", "55011271", "58860488", "60457274")
    assert index.rows.tolist() == list(range(60)) and index.seen.all()
    assert sum(path.suffix == ".jpg" for path in files) == 240
    for row in range(0, 60, 7):
        image = cv2.imread(str(index.image_path(row, row % 4)))
        assert image.shape == (SIZE, SIZE, 3) and image.std() > 10


def test_joints_are_inside_boxes_and_images(index):
    labels = index.labels
    pixels = project(labels)
    top, left, bottom, right = np.moveaxis(labels.boxes.astype(float), -1, 0)[..., None]
    assert pixels.min() > 0 and pixels.max() < SIZE - 1
    # The head joint is on the surface, so it may touch the box.
    x, y = pixels[..., 0], pixels[..., 1]
    assert np.all((x >= left - 1) & (x <= right) & (y >= top - 1) & (y <= bottom))
    wrong = project(labels, flip_world=True)  # the control: a mirrored world must not fit
    x, y = wrong[..., 0], wrong[..., 1]
    assert np.mean((x >= left) & (x <= right) & (y >= top) & (y <= bottom)) < 0.85


def test_left_is_left_and_people_differ_and_move(index):
    labels = index.labels
    joint = {name: labels.joints[:, i] for i, name in enumerate(H36M17.joints)}
    up = joint["thorax"] - joint["hip"]
    forward = joint["nose"] - (joint["head"] + joint["thorax"]) / 2
    side = joint["left_shoulder"] - joint["right_shoulder"]
    triple = np.einsum("ni,ni->n", np.cross(up, forward), side)
    assert np.mean(triple > 0) > 0.95
    shanks = np.linalg.norm(joint["left_foot"] - joint["left_knee"], axis=-1).reshape(3, 20)
    assert shanks.std(1).max() < 0.1 and np.diff(np.sort(shanks[:, 0])).min() > 1  # mm
    feet = np.minimum(joint["left_foot"][:, 2], joint["right_foot"][:, 2])
    assert np.all((feet > 30) & (feet < 220))  # ankles, toes on z = 0
    step = np.linalg.norm(np.diff(labels.joints, axis=0), axis=-1).max(-1)
    same = (np.diff(labels.subject) == 0) & (np.diff(labels.action) == 0)
    assert np.median(step[same]) > 100  # mm, the fastest joint, from frame to frame
