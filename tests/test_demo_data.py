"""The committed demo data: size, counts, and labels that fit the pictures."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ptri.data import transforms
from ptri.data.labels import Labels, labels_path, read_labels
from ptri.posterior.body import length_laws
from ptri.skeleton import H36M17

ROOT = Path(__file__).resolve().parents[1] / "data" / "demo"
SIZE = 512


@pytest.fixture(scope="module")
def labels() -> Labels:
    return read_labels(labels_path(ROOT))


def project(labels: Labels, flip_world: bool = False) -> np.ndarray:
    """Pixels (N, V, 17, 2) of all joints in all views."""
    joints = labels.joints.astype(float) * ([-1, 1, 1] if flip_world else [1, 1, 1])
    rigs = zip(*(value[labels.subject] for value in (labels.K, labels.R, labels.t)))
    rows = [[transforms.project(p, *view) for view in zip(*rig)] for p, rig in zip(joints, rigs)]
    return np.array(rows)[..., :2]


def image_path(labels: Labels, row: int, view: int) -> Path:
    scene = f"{labels.subject_names[labels.subject[row]]}/{labels.action_names[labels.action[row]]}"
    folder = ROOT / "processed" / scene / "imageSequence-undistorted" / labels.camera_names[view]
    return folder / f"img_{labels.frame[row] + 1:06d}.jpg"


def test_size_and_counts_and_images(labels):
    files = [path for path in ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert labels.subject_names == ("S1", "S9", "S11")
    assert labels.camera_names == ("54138969", "55011271", "58860488", "60457274")
    assert len(labels.frame) == 60
    images = {path for path in files if path.suffix == ".jpg"}
    assert images == {image_path(labels, row, view) for row in range(60) for view in range(4)}
    for row in range(0, 60, 7):
        image = cv2.imread(str(image_path(labels, row, row % 4)))
        assert image.shape == (SIZE, SIZE, 3) and image.std() > 10


def test_joints_are_inside_boxes_and_images(labels):
    pixels = project(labels)
    top, left, bottom, right = np.moveaxis(labels.boxes.astype(float), -1, 0)[..., None]
    assert pixels.min() > 0 and pixels.max() < SIZE - 1
    # The head joint is on the surface, so it may touch the box.
    x, y = pixels[..., 0], pixels[..., 1]
    assert np.all((x >= left - 1) & (x <= right) & (y >= top - 1) & (y <= bottom))
    wrong = project(labels, flip_world=True)  # the control: a mirrored world must not fit
    x, y = wrong[..., 0], wrong[..., 1]
    assert np.mean((x >= left) & (x <= right) & (y >= top) & (y <= bottom)) < 0.85


def test_rigs_are_rings_like_human36m_and_differ(labels):
    centres = -np.einsum("svji,svj->svi", labels.R, labels.t)
    distance = np.linalg.norm(centres - [0, 0, 900], axis=-1)
    assert np.all((distance > 4000) & (distance < 7000))
    assert np.all(np.abs(centres[..., 2] - 1550) < 300)
    focal = labels.K[..., 0, 0] / SIZE
    assert np.all(np.abs(focal - 1.1475) < 0.03)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(centres[first] - centres[second], axis=-1).max() > 500


def test_people_are_adults_with_rigid_bones(labels):
    child, parent = np.array(H36M17.bones).T
    lengths = np.linalg.norm(labels.joints[:, child] - labels.joints[:, parent], axis=-1)
    (mean, covariance), _ = length_laws()
    names = [H36M17.joints[c].split("_")[-1] for c in child]
    rigid = [names.index(n) for n in ("knee", "foot", "elbow", "wrist", "head")]
    bodies = []
    for subject in range(3):
        frames = lengths[labels.subject == subject]
        assert frames[:, rigid].std(0).max() < 0.1  # mm
        bodies.append(frames.mean(0))
    z = (np.log(bodies) - mean.numpy()) / covariance.diagonal().sqrt().numpy()
    assert np.abs(z).max() < 3
    spread = np.ptp(bodies, axis=0)  # three different people
    assert spread[rigid].min() > 3


def test_left_is_left_and_people_move(labels):
    joint = {name: labels.joints[:, i] for i, name in enumerate(H36M17.joints)}
    up = joint["thorax"] - joint["hip"]
    forward = joint["nose"] - (joint["head"] + joint["thorax"]) / 2
    side = joint["left_shoulder"] - joint["right_shoulder"]
    triple = np.einsum("ni,ni->n", np.cross(up, forward), side)
    assert np.mean(triple > 0) > 0.95
    feet = np.minimum(joint["left_foot"][:, 2], joint["right_foot"][:, 2])
    assert np.all((feet > 30) & (feet < 220))  # ankles, toes on z = 0
    step = np.linalg.norm(np.diff(labels.joints, axis=0), axis=-1).max(-1)
    same = (np.diff(labels.subject) == 0) & (np.diff(labels.action) == 0)
    assert np.median(step[same]) > 100  # mm, the fastest joint, from frame to frame
