import itertools
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from h36m_fixture import CAMERA_NAMES, make_tiny_h36m
from prepare_h36m import main as prepare

from ptri.config import DataConfig
from ptri.data.h36m_build import (
    JOINTS_OF_32,
    build_labels,
    fit_intrinsics,
    read_una_cameras,
    sequence_name,
)
from ptri.data.labels import H5_NAME, NPY_NAME, read_labels
from ptri.data.multiview import build_index
from ptri.errors import UserError

DISTORTION = np.array([-0.2, 0.24, -0.0014, -0.001, -0.003])


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "h36m"
    return root, make_tiny_h36m(
        root, size=256, num_frames=4, dist=DISTORTION, folder="imageSequence", frame_step=3
    )


def _joints32(joints: np.ndarray, rng) -> np.ndarray:
    """(n, 32, J) around the 17 joints; the others are noise that nobody may read."""
    full = rng.normal(size=(len(joints), 32, joints.shape[2])) * 1e5
    full[:, JOINTS_OF_32] = joints
    return full


def _scenes(labels):
    """(subject, its number, action, rows (N,) bool) of each scene."""
    names = itertools.product(enumerate(labels.subject_names), enumerate(labels.action_names))
    for (s, subject), (a, action) in names:
        yield subject, s, action, (labels.subject == s) & (labels.action == a)


def _write_una(folder: Path, labels) -> None:
    """cameras.h5 and 3D_positions as the una-dinosauria archive holds them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with h5py.File(folder / "cameras.h5", "w") as file:
        for (s, subject), (c, name) in itertools.product(
            enumerate(labels.subject_names), enumerate(CAMERA_NAMES)
        ):
            group = file.create_group(f"{subject.replace('S', 'subject')}/camera{c + 1}")
            K, dist, R, t = (getattr(labels, key)[s, c] for key in ("K", "dist", "R", "t"))
            group["R"] = R.T
            group["T"] = (-R.T @ t)[:, None]
            group["f"] = np.diag(K)[:2, None]
            group["c"] = K[:2, 2:]
            group["k"] = dist[[0, 1, 4], None]
            group["p"] = dist[2:4, None]
            group["Name"] = np.array([[ord(letter)] for letter in name], np.uint16)
    for subject, _, action, rows in _scenes(labels):
        path = folder / subject / f"MyPoses/3D_positions/{sequence_name(subject, action)}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        video = np.zeros((labels.frame[rows].max() + 20, 17, 3))  # all frames of it
        video[labels.frame[rows]] = labels.joints[rows]
        with h5py.File(path, "w") as file:
            file["3D_positions"] = _joints32(video, rng).reshape(len(video), 96).T


def _write_annotations(root: Path, labels) -> None:
    """annot.h5 of every scene as h36m-fetch writes them."""
    rng = np.random.default_rng(0)
    for subject, s, action, rows in _scenes(labels):
        joints = labels.joints[rows].astype(float)
        xy, xyz = [], []
        for c in range(4):
            K, dist, R, t = (getattr(labels, key)[s, c] for key in ("K", "dist", "R", "t"))
            xyz.append(joints @ R.T + t)
            flat = xyz[-1].reshape(-1, 3)
            projected = cv2.projectPoints(flat, np.zeros(3), np.zeros(3), K, dist)[0]
            xy.append(projected.reshape(*joints.shape[:2], 2))
        with h5py.File(root / "processed" / subject / action / "annot.h5", "w") as file:
            file["pose/2d"] = _joints32(np.concatenate(xy), rng)
            file["pose/3d"] = _joints32(np.concatenate(xyz), rng)
            file["frame"] = np.tile(labels.frame[rows] + 1, 4)
            file["camera"] = np.repeat([int(name) for name in CAMERA_NAMES], rows.sum())
            for key in ("subject", "action", "subaction"):
                file[key] = np.zeros(4 * rows.sum(), int)


def test_build_from_una(tiny):
    root, labels = tiny
    _write_una(root.parent / "una", labels)
    built = build_labels(root, root.parent / "una")
    assert built[:3] == (labels.subject_names, labels.camera_names, labels.action_names)
    for name in ("K", "dist", "R", "t"):
        np.testing.assert_allclose(getattr(built, name), getattr(labels, name), atol=1e-6)
    for name in ("subject", "action", "frame"):
        np.testing.assert_array_equal(getattr(built, name), getattr(labels, name))
    np.testing.assert_allclose(built.joints, labels.joints, atol=1e-3)
    _check_boxes(built, labels)


def _check_boxes(built, labels) -> None:
    """Square, around all joints, not much larger."""
    height, width = np.moveaxis(built.boxes[..., 2:] - built.boxes[..., :2], -1, 0)
    assert abs(height - width).max() <= 1
    drawn = labels.boxes.astype(float)  # the joints' extent and 16 px more on each side
    assert (built.boxes[..., :2] <= drawn[..., :2] + 16).all()
    assert (built.boxes[..., 2:] >= drawn[..., 2:] - 16).all()
    assert (height <= (drawn[..., 2] - drawn[..., 0] - 30) * 1.25).all()


def test_build_from_annotations_alone(tiny):
    root, labels = tiny
    _write_annotations(root, labels)
    built = build_labels(root)
    np.testing.assert_allclose(built.K, labels.K, atol=0.05)  # px; joints are float32
    # World is another one: compare what cameras say of each other, and of the joints.
    R, R_built = (x.R @ x.R[:, :1].swapaxes(-1, -2) for x in (labels, built))
    np.testing.assert_allclose(R_built, R, atol=1e-5)
    for s, c in np.ndindex(2, 4):
        rows = labels.subject == s
        expected = labels.joints[rows] @ labels.R[s, c].T + labels.t[s, c]
        found = built.joints[rows] @ built.R[s, c].T + built.t[s, c]
        np.testing.assert_allclose(found, expected, atol=0.05)  # mm
    _check_boxes(built, labels)


def test_a_missing_camera_folder_is_a_missing_view(tiny):
    root, labels = tiny
    _write_annotations(root, labels)
    scene = root / "processed" / "S9" / "Walking-1" / "imageSequence"
    shutil.rmtree(scene / CAMERA_NAMES[0])
    (scene / CAMERA_NAMES[2] / "img_000004.jpg").unlink()
    built = build_labels(root)
    assert len(built.frame) == len(labels.frame)
    rows = (built.subject == 1) & (built.action == 1)
    assert (built.boxes[rows, 0] == 0).all()
    assert (built.boxes[rows, 2] == 0).all(-1).tolist() == [False, True, False, False]
    assert (built.boxes[~rows] != 0).any(-1).all()


def test_fit_intrinsics():
    rng = np.random.default_rng(1)
    xyz = rng.uniform([-1500, -1500, 3000], [1500, 1500, 6000], (500, 3))
    K = np.array([[1145.0, 0, 512.5], [0, 1143.8, 515.5], [0, 0, 1]])
    xy = cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), K, DISTORTION)[0][:, 0]
    found_K, found_dist = fit_intrinsics(xy, xyz)
    np.testing.assert_allclose(found_K, K, atol=1e-6)
    np.testing.assert_allclose(found_dist, DISTORTION, atol=1e-7)


def test_sequence_names():
    for scene, expected in {
        "S9 Directions-1": "Directions 1",
        "S9 Directions-2": "Directions",
        "S11 Greeting-1": "Greeting 2",
        "S7 TakingPhoto-2": "Photo 1",
        "S8 WalkingTogether-2": "WalkTogether 2",
        "S6 SittingDown-1": "SittingDown 1",
    }.items():
        assert sequence_name(*scene.split()) == expected
    actions = """Directions Discussion Eating Greeting Phoning Posing Purchases Sitting SittingDown
        Smoking TakingPhoto Waiting Walking WalkingDog WalkingTogether"""
    scenes = [f"{action}-{number}" for action in actions.split() for number in (1, 2)]
    for subject in ("S1", "S5", "S6", "S7", "S8", "S9", "S11"):
        assert len({sequence_name(subject, scene) for scene in scenes}) == 30


def test_build_errors(tiny, capsys):
    root, labels = tiny
    una = root.parent / "una"

    def fails(words, *arguments, action=build_labels):
        with pytest.raises(UserError, match=words):
            action(*arguments)

    fails(r"S1: no annot\.h5 holds camera 54138969", root)
    fails(r"cameras\.h5: no such file", root, root)
    fails("no images; expected processed", root.parent)
    _write_una(una, labels)
    (una / "S9/MyPoses/3D_positions/Greeting.h5").unlink()
    fails(r"Greeting\.h5: joints of S9/Greeting-2 cannot be read", root, una)
    with h5py.File(una / "cameras.h5", "a") as file:
        file["subject1/camera2/Name"][...] = ord("7")
    for words, subject in (
        ("camera 2 is '77777777', expected 55011271", "S1"),
        ("cameras of S5 cannot be read", "S5"),
    ):
        fails(words, una / "cameras.h5", subject, action=read_una_cameras)
    (root / "processed/S1/Walking-1/annot.h5").write_bytes(b"rubbish")
    fails(r"annot\.h5: .*pose/3d cannot be read", root)
    capsys.readouterr()
    assert prepare(["build", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_build_command_makes_a_usable_tree(tiny, capsys):
    root, labels = tiny
    (root / "extra" / NPY_NAME).unlink()
    _write_annotations(root, labels)
    assert prepare(["build", str(root), "--npy"]) == 0
    assert {path.name for path in (root / "extra").iterdir()} == {H5_NAME, NPY_NAME}
    index = build_index(DataConfig(root=str(root), train_subjects=[1], test_subjects=[9]), "test")
    assert len(index.rows) == 8 and not index.images.undistorted
    assert prepare(["build", str(root)]) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err


def test_convert(tiny, capsys):
    root, labels = tiny
    assert prepare(["convert", str(root)]) == 0
    assert f"{len(labels.frame)} frames" in capsys.readouterr().out
    np.testing.assert_array_equal(read_labels(root / "extra" / H5_NAME).joints, labels.joints)
    assert prepare(["convert", str(root)]) == 2
    assert prepare(["convert", str(root), "--overwrite"]) == 0


def test_check_reports_counts_and_writes_overlays(tiny, capsys, tmp_path):
    root, _ = tiny
    out = tmp_path / "out"
    assert prepare(["check", str(root), "--read", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    table = [line.split() for line in text.splitlines()]
    assert ["S1", "S9", "all"] in table
    assert ["Greeting-2", "4", "4", "8"] in table and ["all", "8", "8", "16"] in table
    assert "complete" in text
    pictures = sorted(out.iterdir())
    assert len(pictures) == 3
    assert all(cv2.imread(str(path)).std() > 10 for path in pictures)


def test_check_names_what_is_missing_or_damaged(tiny, capsys, tmp_path):
    root, _ = tiny
    scene = root / "processed/S9/Walking-1/imageSequence"
    (scene / CAMERA_NAMES[1] / "img_000004.jpg").unlink()
    broken = scene / CAMERA_NAMES[2] / "img_000010.jpg"
    broken.write_bytes(broken.read_bytes()[:1000])
    damaged = f"{broken}: truncated JPEG"
    for words, count in ((), 1), (("--read",), 2):
        assert prepare(["check", str(root), *words, "--out", str(tmp_path / "out")]) == 1
        text = capsys.readouterr().out
        assert "4 (1 missing)" in text and f"missing: {scene / CAMERA_NAMES[1]}" in text
        assert f"{count} problems" in text and (count == 1 or damaged in text)
