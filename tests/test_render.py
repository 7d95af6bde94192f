"""Rendered people: joints on the bodies, left and right, determinism, the layout.

Skipped without the `render` extra or an EGL driver. The first run ever builds Anny's cache, which
takes one to two minutes.
"""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

pytest.importorskip("anny")
pytest.importorskip("moderngl")

from ptri.data.labels import labels_path, read_labels
from ptri.errors import UserError
from ptri.people.articulation import ANGLES, INDEX, angles_to_rotations
from ptri.render import layout
from ptri.render.body import body_statistics, build_shapes, sample_phenotypes
from ptri.render.clips import sample_clip, sample_rig
from ptri.render.gl import FAR, Renderer
from ptri.render.people import make_rng, sample_person
from ptri.render.posing import part_rotations, pose, skin
from ptri.render.room import sample_room
from ptri.render.settings import RenderConfig, RenderSettings
from ptri.skeleton import H36M17

STATISTICS = Path(__file__).resolve().parents[1] / "ptri" / "posterior" / "body_statistics.json"
SIZE, FACES = 200, 9000
LOOKS = RenderConfig(clutter=0, faces=FACES)
TINY = RenderSettings(
    subjects=("S1", "S9"), actions=("Walking-1", "Sitting-1"), frames=2, cameras=2, size=72,
    rig="ring", faces=FACES,
)  # fmt: skip


@pytest.fixture(scope="module")
def renderer():
    try:
        renderer = Renderer(SIZE, SIZE, samples=0)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def person():
    return sample_person(make_rng(11), LOOKS)


def camera_at(azimuth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K px, R, t m of a level camera 4 m away that sees a standing person."""
    centre = np.array([4 * np.cos(azimuth), 4 * np.sin(azimuth), 1.0])
    forward = -np.array([np.cos(azimuth), np.sin(azimuth), 0])
    right = np.cross(forward, [0, 0, 1])
    R = np.stack([right, np.cross(forward, right), forward])
    K = np.array([[1.4 * SIZE, 0, SIZE / 2], [0, 1.4 * SIZE, SIZE / 2], [0, 0, 1]])
    return K, R, -R @ centre


def silhouette(renderer, *camera_and_slot) -> np.ndarray:
    """Mask (SIZE, SIZE) bool of one posed person alone."""
    return renderer.person_depth(*camera_and_slot) < 0.99 * FAR


def project(points: np.ndarray, camera) -> np.ndarray:
    K, R, t = camera
    pixels = (points @ R.T + t) @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def draw_pose(renderer, person, transforms):
    room = sample_room(make_rng(0), np.array([[4.0, 0, 1]]), LOOKS)
    dressed = person.dressed
    points, normals = skin(transforms, dressed.weights, dressed.vertices, dressed.normals)
    renderer.set_picture(None)
    renderer.set_person(dressed)
    renderer.pose({0: (points, normals)}, room)
    return points


def angles_pose(person, **degrees):
    """Driver transforms and joints of a body that faces -y, with some joint angles set."""
    angles = torch.zeros(1, len(ANGLES))
    for name, value in degrees.items():
        angles[0, INDEX[name]] = np.radians(value)
    parts = part_rotations(*angles_to_rotations(angles))
    transforms, joints = pose(person.rig, parts, np.array([[0, 0, person.shape.joints[6, 2]]]))
    return transforms[0], joints[0]


@pytest.mark.parametrize("kind", ["stand", "walk", "gesture", "squat", "sit", "dance", "random"])
def test_joints_lie_inside_silhouettes(renderer, person, kind):
    clip = sample_clip(person, kind, 3, 1.0, seed=5)
    inside, shifted = [], []
    for frame in range(3):
        joints = clip.joints[frame]
        middle = joints.mean(0) * [1, 1, 0]
        transforms = clip.transforms[frame].copy()
        transforms[:, :, 3] -= middle
        draw_pose(renderer, person, transforms)
        for azimuth in (0.3, 1.9, 3.7):
            camera = camera_at(azimuth)
            mask = silhouette(renderer, *camera)
            # The crown lies on the surface: one pixel of tolerance.
            mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
            for points, result in (
                (joints - middle, inside),
                (joints - middle + [0.25, 0, 0.1], shifted),
            ):
                x, y = np.clip(project(points, camera).round().astype(int), 0, SIZE - 1).T
                result.append(mask[y, x])
        renderer.end_pose()
    assert np.mean(inside) == 1.0
    assert np.mean(shifted) < 0.85  # the control


def test_silhouette_follows_the_pixel_convention(renderer, person):
    transforms, _ = angles_pose(person, left_arm_abd=80, right_arm_abd=60)
    points = draw_pose(renderer, person, transforms)
    camera = camera_at(-1.3)
    mask = silhouette(renderer, *camera)
    rows, columns = np.nonzero(mask)
    pixels = project(points, camera)
    # A pixel is drawn when its centre is covered.
    for drawn, exact in ((columns, pixels[:, 0]), (rows, pixels[:, 1])):
        assert -0.05 <= drawn.min() - exact.min() < 1.5
        assert -0.05 <= exact.max() - drawn.max() < 1.5
    image = renderer.draw(*camera)
    renderer.end_pose()
    assert image.shape == (SIZE, SIZE, 3) and image.std() > 5


def test_two_people_stand_in_one_picture(renderer, person):
    other = sample_person(make_rng(12), LOOKS)
    camera, room = camera_at(-1.3), sample_room(make_rng(0), np.array([[4.0, 0, 1]]), LOOKS)
    transforms, _ = angles_pose(person)
    posed = {}
    for slot, (who, shift) in enumerate(((person, -0.5), (other, 0.5))):
        renderer.set_person(who.dressed, slot)
        points, normals = skin(
            transforms, who.dressed.weights, who.dressed.vertices, who.dressed.normals
        )
        posed[slot] = points + np.array([shift, 0, 0]), normals
    renderer.set_picture(None)
    renderer.pose(posed, room)
    both, masks = renderer.draw(*camera), [silhouette(renderer, *camera, slot) for slot in (0, 1)]
    renderer.end_pose()
    renderer.pose({0: posed[0]}, room)
    alone = renderer.draw(*camera)
    renderer.end_pose()
    renderer.set_person(None, 1)
    left, right = (np.nonzero(mask)[1].mean() for mask in masks)
    assert left < SIZE / 2 < right
    changed = np.abs(both.astype(int) - alone).max(-1) > 0
    assert changed[masks[1] & ~masks[0]].mean() > 0.95  # the second person is in the picture
    assert np.abs(both.astype(int) - alone)[masks[0]].mean() < 10  # the first one, but for shadow


def test_left_is_left(renderer, person):
    transforms, joints = angles_pose(person, left_arm_abd=90)
    points = draw_pose(renderer, person, transforms)
    front = camera_at(-np.pi / 2)  # the person faces -y
    mask, pixels = silhouette(renderer, *front), project(joints, front)
    renderer.end_pose()
    names = {name: i for i, name in enumerate(H36M17.joints)}
    for joint in ("hip", "knee", "foot", "shoulder", "elbow", "wrist"):
        left, right = names[f"left_{joint}"], names[f"right_{joint}"]
        assert joints[left, 0] > joints[right, 0]  # x is the person's left
        assert pixels[left, 0] > pixels[right, 0]  # on the right of a picture from the front
    columns = np.nonzero(mask)[1] - pixels[names["hip"], 0]
    assert columns.max() > 1.5 * -columns.min()  # the raised left arm reaches far to the right
    assert joints[names["nose"], 1] < joints[names["thorax"], 1]  # the nose is in front
    toes = points[points[:, 2] < points[:, 2].min() + 0.03, 1]
    assert toes.min() < joints[names["left_foot"], 1] - 0.1  # and so are the toes


def test_clothes_change_colours_not_joints(person):
    other = sample_person(make_rng(12), LOOKS)
    assert np.abs(person.dressed.colours - other.dressed.colours).max() > 0.05
    same = sample_person(make_rng(11), LOOKS)
    np.testing.assert_array_equal(person.dressed.vertices, same.dressed.vertices)
    np.testing.assert_array_equal(person.shape.joints, same.shape.joints)
    # Cloth stands off the skin by centimetres, not more.
    gap = np.abs(np.ptp(person.dressed.vertices, axis=0) - np.ptp(person.shape.vertices, axis=0))
    assert gap.max() < 0.12


def test_limbs_keep_their_lengths(person):
    clip = sample_clip(person, "dance", 10, 5.0, seed=3)
    child, parent = np.array(H36M17.bones).T
    lengths = 1000 * np.linalg.norm(clip.joints[:, child] - clip.joints[:, parent], axis=-1)
    rest = person.shape.joints
    rest = 1000 * np.linalg.norm(rest[child] - rest[parent], axis=-1)
    names = [H36M17.joints[c].split("_")[-1] for c in child]
    rigid = np.isin(names, ["knee", "foot", "elbow", "wrist", "head"])
    np.testing.assert_allclose(lengths[:, rigid], np.tile(rest[rigid], (10, 1)), atol=0.01)
    # Joints with several bones between them: the trunk bends, the shoulder girdle lifts.
    assert np.abs(lengths / rest - 1).max() < 0.2


def test_tight_clothes_follow_the_body():
    """The drawn surface lies within 8 mm (a shoe sole) of the skin but for the hair."""

    def gap(seed: int, clothed: float) -> float:
        person = sample_person(make_rng(seed), dataclasses.replace(LOOKS, clothed=clothed))
        cloth = person.dressed.layers[:, :3].max(1) > 0
        return cKDTree(person.shape.vertices).query(person.dressed.vertices[cloth])[0].max()

    tight, loose = ([gap(seed, clothed) for seed in range(4)] for clothed in (0.0, 1.0))
    assert max(tight) < 0.008 < np.median(loose)


def test_statures_are_reached_and_statistics_are_current():
    phenotypes = sample_phenotypes(12, make_rng(2))
    shapes = build_shapes(phenotypes)
    stature = np.array([shape.stature for shape in shapes])
    np.testing.assert_allclose(stature, phenotypes["stature"], atol=1e-4)
    assert stature.min() > 1.5 and stature.max() < 1.95
    fresh = body_statistics(60, seed=1)
    statistics = json.loads(STATISTICS.read_text())
    mean = np.array(statistics["mean_log_length"])
    covariance = np.array(statistics["covariance_log_length"])
    error = np.sqrt(np.diag(covariance) / 60)
    assert np.abs((fresh["mean_log_length"] - mean) / error).max() < 4.5


def test_dataset_is_readable_deterministic_and_resumable(renderer, tmp_path, monkeypatch):
    whole = dataclasses.replace(TINY, out=str(tmp_path / "whole"))
    layout.render_dataset(whole, progress=False)
    labels = read_labels(labels_path(whole.out))
    assert labels.joints.shape == (8, 17, 3) and labels.boxes.shape == (8, 2, 4)
    assert not (tmp_path / "whole" / "extra" / "parts").exists()
    rig = sample_rig(whole, 1)
    np.testing.assert_allclose(labels.K[1], rig.K, rtol=1e-6)

    real_job, done = layout._job, []

    def fails_in_the_middle(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        real_job(job)
        done.append(job)

    broken = dataclasses.replace(TINY, out=str(tmp_path / "broken"))
    monkeypatch.setattr(layout, "_job", fails_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        layout.render_dataset(broken, progress=False)
    monkeypatch.setattr(layout, "_job", real_job)
    other = dataclasses.replace(broken, seed=1)
    with pytest.raises(UserError, match="other settings"):
        layout.render_dataset(other, progress=False)
    layout.render_dataset(broken, progress=False)
    again = read_labels(labels_path(broken.out))
    for first, second in zip(labels, again):
        np.testing.assert_array_equal(first, second)
    for row in range(8):
        subject, action = labels.subject[row], labels.action[row]
        for camera, name in enumerate(labels.camera_names):
            paths = [
                layout.image_path(
                    tmp_path / root, labels.subject_names[subject], labels.action_names[action],
                    name, labels.frame[row],
                )
                for root in ("whole", "broken")
            ]  # fmt: skip
            assert paths[0].read_bytes() == paths[1].read_bytes()
            pixels = labels.joints[row] @ labels.R[subject, camera].T + labels.t[subject, camera]
            pixels = pixels @ labels.K[subject, camera].T
            x, y = (pixels[:, :2] / pixels[:, 2:]).T
            top, left, bottom, right = labels.boxes[row, camera]
            seen = (x > 0) & (x < 71) & (y > 0) & (y < 71)
            assert seen.mean() > 0.7
            assert np.all((x[seen] >= left - 1) & (x[seen] <= right + 1))
            assert np.all((y[seen] >= top - 1) & (y[seen] <= bottom + 1))
    with pytest.raises(UserError, match="finished data set"):
        layout.render_dataset(broken, progress=False)


def test_backdrops_show_behind_the_person(renderer, person):
    transforms, _ = angles_pose(person)
    draw_pose(renderer, person, transforms)
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:] = (255, 0, 0)
    room = sample_room(make_rng(0), np.array([[4.0, 0, 1]]), LOOKS, bare=True)
    room = room._replace(look=room.look._replace(tint=np.ones(3)))
    renderer.end_pose()
    renderer.set_picture(picture)
    dressed = person.dressed
    points, normals = skin(transforms, dressed.weights, dressed.vertices, dressed.normals)
    renderer.pose({0: (points, normals)}, room)
    camera = camera_at(0.5)
    image, mask = renderer.draw(*camera), silhouette(renderer, *camera)
    renderer.end_pose()
    renderer.set_picture(None)
    sky = image[:20]
    assert np.all(sky[..., 0] > 250) and np.all(sky[..., 1:] < 5)
    assert image[mask][:, 1].mean() > 10  # the person is not red
