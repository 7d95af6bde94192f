"""Rendered people: joints on the bodies, left and right, the Human3.6M layout of clips."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from render_fixture import FACES, SIZE, empty_room, level_camera, person, pose_of, renderer, take
from scipy.spatial import cKDTree

from ptri.data.labels import labels_path, read_labels
from ptri.errors import UserError
from ptri.render.clips import sample_clip, sample_rig
from ptri.render.people.body import body_statistics, build_shapes, sample_phenotypes
from ptri.render.people.person import make_rng
from ptri.render.settings import RenderSettings
from ptri.render.stage.cameras import Camera
from ptri.render.write import layout
from ptri.skeleton import H36M17

STATISTICS = Path(__file__).resolve().parents[1] / "ptri" / "posterior" / "body_statistics.json"
JOINT = {name: i for i, name in enumerate(H36M17.joints)}
SMALL = {"frames": 2, "cameras": 2, "size": 72, "rig": "ring", "faces": FACES}
TINY = RenderSettings(subjects=("S1", "S9"), actions=("Walking-1", "Sitting-1"), **SMALL)


@pytest.mark.parametrize("kind", ["walk", "sit", "dance", "random"])
def test_joints_lie_inside_silhouettes(kind):
    clip = sample_clip(person(), kind, 3, 1.0, seed=5)
    inside, shifted = [], []
    for joints, transforms in zip(clip.joints, clip.transforms.copy()):
        middle = joints.mean(0) * [1, 1, 0]
        transforms[:, :, 3] -= middle
        drawn = (person().dressed, *person().skin(transforms))
        for azimuth in (0.3, 1.9, 3.7):
            camera = level_camera(azimuth)
            (mask,) = take(camera, empty_room(), drawn).masks
            # The crown lies on the surface: one pixel of tolerance.
            mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
            for move, result in (([0, 0, 0], inside), ([0.25, 0, 0.1], shifted)):
                pixels = camera.project(joints - middle + move)[:, :2]
                x, y = np.clip(pixels.round().astype(int), 0, SIZE - 1).T
                result.append(mask[y, x])
    assert np.mean(inside) == 1.0
    assert np.mean(shifted) < 0.85  # the control


def test_two_people_stand_in_one_picture():
    people, (transforms, _) = [], pose_of(person())
    for who, shift in ((person(), -0.5), (person(12), 0.5)):
        points, normals = who.skin(transforms)
        people.append((who.dressed, points + np.array([shift, 0, 0]), normals))
    camera = level_camera(-1.3)
    both, _, masks = take(camera, empty_room(), *people)
    change = np.abs(both.astype(int) - take(camera, empty_room(), people[0]).image)
    left, right = (np.nonzero(mask)[1].mean() for mask in masks)
    assert left < SIZE / 2 < right
    # The second person is in the picture; the first one is the same, but for shadow.
    assert (change.max(-1) > 0)[masks[1] & ~masks[0]].mean() > 0.95
    assert change[masks[0]].mean() < 10


def test_left_is_left():
    transforms, joints = pose_of(person(), left_arm_abd=90)
    points, normals = person().skin(transforms)
    front = level_camera(-np.pi / 2)  # the person faces -y
    (mask,) = take(front, empty_room(), (person().dressed, points, normals)).masks
    pixels = front.project(joints)
    for name in ("hip", "knee", "foot", "shoulder", "elbow", "wrist"):
        left, right = JOINT[f"left_{name}"], JOINT[f"right_{name}"]
        assert joints[left, 0] > joints[right, 0]  # x is the person's left
        assert pixels[left, 0] > pixels[right, 0]  # on the right of a picture from the front
    columns = np.nonzero(mask)[1] - pixels[JOINT["hip"], 0]
    assert columns.max() > 1.5 * -columns.min()  # the raised left arm reaches far to the right
    assert joints[JOINT["nose"], 1] < joints[JOINT["thorax"], 1]  # the nose is in front
    toes = points[points[:, 2] < points[:, 2].min() + 0.03, 1]
    assert toes.min() < joints[JOINT["left_foot"], 1] - 0.1  # and so are the toes


def test_limbs_keep_their_lengths():
    clip = sample_clip(person(), "dance", 10, 5.0, seed=3)
    child, parent = np.array(H36M17.bones).T
    lengths, rest = (
        1000 * np.linalg.norm(joints[..., child, :] - joints[..., parent, :], axis=-1)
        for joints in (clip.joints, person().shape.joints)
    )
    names = [H36M17.joints[c].split("_")[-1] for c in child]
    rigid = np.isin(names, ["knee", "foot", "elbow", "wrist", "head"])
    np.testing.assert_allclose(lengths[:, rigid], np.tile(rest[rigid], (10, 1)), atol=0.01)
    # Joints with several bones between them: the trunk bends, the shoulder girdle lifts.
    assert np.abs(lengths / rest - 1).max() < 0.2


def test_tight_clothes_follow_the_body():
    """The drawn surface lies within 8 mm (a shoe sole) of the skin but for the hair."""

    def gap(seed: int, clothed: float) -> float:
        who = person(seed, clothed=clothed)
        cloth = who.dressed.layers[:, :3].max(1) > 0
        return cKDTree(who.shape.vertices).query(who.dressed.vertices[cloth])[0].max()

    tight, loose = ([gap(seed, clothed) for seed in range(4)] for clothed in (0.0, 1.0))
    assert max(tight) < 0.008 < np.median(loose) < 0.12


def test_statures_are_reached_and_statistics_are_current():
    phenotypes = sample_phenotypes(12, make_rng(2))
    stature = np.array([shape.stature for shape in build_shapes(phenotypes)])
    np.testing.assert_allclose(stature, phenotypes["stature"], atol=1e-4)
    assert stature.min() > 1.5 and stature.max() < 1.95
    fresh, statistics = body_statistics(60, seed=1), json.loads(STATISTICS.read_text())
    error = np.sqrt(np.diag(statistics["covariance_log_length"]) / 60)
    off = np.subtract(fresh["mean_log_length"], statistics["mean_log_length"]) / error
    assert np.abs(off).max() < 4.5


def test_things_stand_before_the_cameras_of_a_rig(tmp_path):
    renderer()
    seen, images = [], []
    for chance in (0.0, 1.0):
        out = tmp_path / str(chance)
        options = {"subjects": ("S1",), "occluders": chance, "size": 128, "quality": 95}
        layout.render_dataset(dataclasses.replace(TINY, out=str(out), **options), progress=False)
        with np.load(out / "extra" / layout.TRUTH_NAME) as truth:
            seen.append(truth["h36m17_visible"])
        files = sorted((out / "processed").rglob("*.jpg"))
        images.append(np.stack([cv2.imread(str(path)) for path in files]).astype(int))
    assert not (seen[1] & ~seen[0]).any() and seen[1].sum() < seen[0].sum()
    changed = (np.abs(images[0] - images[1]).max(-1) > 40).mean((1, 2))  # of each image
    assert (changed > 0.01).all() and changed.max() < 0.6


def test_a_data_set_is_readable_deterministic_and_resumable(tmp_path, monkeypatch):
    renderer()
    whole, broken = (dataclasses.replace(TINY, out=str(tmp_path / n)) for n in ("whole", "broken"))
    layout.render_dataset(whole, progress=False)
    labels = read_labels(labels_path(whole.out))
    assert labels.joints.shape == (8, 17, 3) and labels.boxes.shape == (8, 2, 4)
    assert not (tmp_path / "whole" / "extra" / "parts").exists()
    np.testing.assert_allclose(labels.K[1], sample_rig(whole, 1).K, rtol=1e-6)

    real_job, done = layout._job, []

    def fails_in_the_middle(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(real_job(job))

    monkeypatch.setattr(layout, "_job", fails_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        layout.render_dataset(broken, progress=False)
    monkeypatch.setattr(layout, "_job", real_job)
    with pytest.raises(UserError, match="other settings"):
        layout.render_dataset(dataclasses.replace(broken, seed=1), progress=False)
    layout.render_dataset(broken, progress=False)
    for first, second in zip(labels, read_labels(labels_path(broken.out))):
        np.testing.assert_array_equal(first, second)
    images = [sorted((tmp_path / n / "processed").rglob("*.jpg")) for n in ("whole", "broken")]
    assert len(images[0]) == 16
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*images, strict=True))
    for row, camera in np.ndindex(8, 2):
        rig = (part[labels.subject[row], camera] for part in (labels.K, labels.R, labels.t))
        pixels = Camera(*rig).project(labels.joints[row].astype(float))[:, :2]
        seen = ((pixels > 0) & (pixels < 71)).all(1)
        top, left, bottom, right = labels.boxes[row, camera]
        assert seen.mean() > 0.7 and (pixels[seen] >= [left - 1, top - 1]).all()
        assert (pixels[seen] <= [right + 1, bottom + 1]).all()
    with pytest.raises(UserError, match="finished data set"):
        layout.render_dataset(broken, progress=False)


def test_backdrops_show_behind_the_person():
    room = empty_room(bare=True)
    room = room._replace(look=room.look._replace(tint=np.ones(3)))
    renderer().set_picture(np.full((32, 64, 3), (255, 0, 0), np.uint8))
    drawn = (person().dressed, *person().skin(pose_of(person())[0]))
    image, _, (mask,) = take(level_camera(0.5), room, drawn)
    renderer().set_picture(None)
    sky = image[:16]
    assert np.all(sky[..., 0] > 250) and np.all(sky[..., 1:] < 5)
    assert image[mask][:, 1].mean() > 10  # the person is not red
