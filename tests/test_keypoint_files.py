"""Reading recordings: exact on made-up files, the right person, errors that name the culprit."""

import json

import numpy as np
import pytest
import torch
import yaml
from recording_fixture import NAMES, edit_cameras, make_recording

from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.recordings import intrinsics
from ptri.recordings.keypoint_files import distort, read_recording, undistort
from ptri.recordings.solve import rig_input
from ptri.recordings.write_cameras import write_toml
from ptri.rig.check import known_joints
from ptri.skeleton import H36M17, SKELETONS, linear_map, map_joints
from ptri.structures import Cameras


def read(root, **options):
    return read_recording(root, RecordingConfig(**options))


def undistorted(truth, joints):
    """(T, V, J, 2) px of some of the made recording's joints."""
    cameras = Cameras(*(torch.tensor(truth[name]) for name in ("K", "R", "t")))
    return project(torch.tensor(truth[joints]), cameras).numpy()


@pytest.fixture
def made(tmp_path):
    return tmp_path, make_recording(tmp_path, bystander=True)


def test_points_are_the_subjects_and_undistorted(made):
    root, truth = made
    recording = read(root)
    assert recording.names == NAMES
    assert recording.skeleton.name == "body25b"
    assert recording.frames.tolist() == list(range(6))
    for v in range(4):
        np.testing.assert_allclose(recording.cameras[v].t, truth["t"][v])
    np.testing.assert_allclose(recording.xy, undistorted(truth, "joints"), atol=1e-2)
    assert (recording.confidence == 0.8).all()


@pytest.mark.parametrize("joint_set", ["body25", "body25b", "coco17", "coco18", "halpe26"])
def test_joint_sets_are_told_apart_and_mapped(tmp_path, joint_set):
    truth = make_recording(tmp_path, joint_set=joint_set)
    recording = read(tmp_path)
    assert recording.skeleton.name == joint_set
    keypoints = known_joints(rig_input(recording, 0.01))
    xy, covariance, confidence = (value.numpy() for value in keypoints)
    expected = undistorted(truth, "world")
    for name in ("left_foot", "right_knee", "left_wrist", "right_shoulder", "left_hip"):
        j = H36M17.joints.index(name)
        np.testing.assert_allclose(xy[:, :, j], expected[:, :, j], atol=1e-2)
    spine = H36M17.joints.index("spine")
    assert np.isnan(xy[:, :, spine]).all() and (confidence[:, :, spine] == 0).all()
    hip = H36M17.joints.index("hip")  # the middle of the hips, up to perspective
    assert np.abs(xy[:, 1, hip] - expected[:, 1, hip]).max() < 6
    extent = np.nanmax(np.ptp(recording.xy[:, 0], axis=1))  # the noise is a share of the person's
    assert covariance[0, 0, 2, 0, 0] ** 0.5 == pytest.approx(0.01 * extent, rel=0.1)


def test_linear_maps_are_means_and_compose_with_left_right():
    for source in SKELETONS.values():
        matrix = linear_map(source, H36M17)
        rows = ~np.isnan(matrix).any(1)
        np.testing.assert_allclose(matrix[rows].sum(1), 1)
        flipped = matrix[list(H36M17.flip)][:, list(source.flip)]
        np.testing.assert_array_equal(flipped, matrix)  # NaN at the same places
    points = np.random.default_rng(0).normal(size=(2, 17, 3))
    points[0, 3] = np.nan
    same = map_joints(points, linear_map(H36M17, H36M17))
    np.testing.assert_array_equal(same, points)


def test_distortion_round_trip():
    K = np.array([[900.0, 0, 500], [0, 880, 510], [0, 0, 1]])
    dist = np.array([-0.2, 0.1, 0.002, -0.001, 0.01])
    xy = np.random.default_rng(1).uniform(50, 950, (40, 2))
    xy[3] = np.nan
    back = distort(undistort(xy, K, dist), K, dist)
    np.testing.assert_allclose(back, xy, atol=0.05)  # OpenCV's inverse stops at 0.03 px here
    assert np.nanmax(np.abs(undistort(xy, K, dist) - xy)) > 5  # the control: it does something


def write_qca(path, cameras):
    """As Qualisys Track Manager writes it, by what is known of its units and axes."""
    lines = ["<calibration><cameras>"]
    for camera in cameras:
        (width, height), K, (k1, k2, p1, p2, k3) = camera.size, 64 * camera.K, camera.dist
        M, centre = np.diag([1, -1, -1]) @ camera.R, -camera.R.T @ camera.t
        rotation = " ".join(f'r{i + 1}{j + 1}="{M[i, j]:.17g}"' for i in range(3) for j in range(3))
        place = " ".join(f'{axis}="{value:.17g}"' for axis, value in zip("xyz", centre))
        lines += [
            f'<camera active="1" serial="{camera.name}">',
            f'<fov_video left="0" top="0" right="{width - 1}" bottom="{height - 1}"/>',
            f"<transform {rotation} {place}/>",
            f'<intrinsic focalLengthU="{K[0, 0]}" focalLengthV="{K[1, 1]}" centerPointU="{K[0, 2]}"'
            f' centerPointV="{K[1, 2]}" radialDistortion1="{k1}" radialDistortion2="{k2}"'
            f' radialDistortion3="{k3}" tangentalDistortion1="{p1}" tangentalDistortion2="{p2}"/>',
            "</camera>",
        ]
    off = '<camera active="0" serial="off"/>'
    path.write_text("\n".join([*lines, off, "</cameras></calibration>"]))


@pytest.mark.parametrize("kind", ["yaml", "toml", "fields", "qca"])
def test_camera_files_of_every_kind_agree(made, kind):
    root, _ = made
    cameras = intrinsics.read_cameras(root / "calibration.json")
    tree = json.loads((root / "calibration.json").read_text())
    if kind == "yaml":
        path = root / "c.yaml"
        path.write_text(yaml.safe_dump(tree))
    elif kind == "fields":
        path = root / "c.json"
        entries = {}
        for entry in tree["cameras"]:
            (fx, _, cx), (_, fy, cy), _ = entry.pop("K")
            entries[entry.pop("name")] = {**entry, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
        path.write_text(json.dumps({"cameras": entries}))
    elif kind == "qca":
        path = root / "c.qca.txt"
        write_qca(path, cameras)
    else:  # Pose2Sim's, in metres
        path = root / "c.toml"
        write_toml(path, cameras)
    again = intrinsics.read_cameras(path)
    for a, b in zip(cameras, again):
        assert (a.name, a.size) == (b.name, b.size)
        for key in ("K", "dist", "R", "t"):
            np.testing.assert_allclose(getattr(a, key), getattr(b, key), atol=1e-6)


def set_in(index, key, value):
    return lambda cameras: cameras[index].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in(1, "K", [[float("nan"), 0, 5], [0, 9, 5], [0, 0, 1]]), "'front': K holds NaN"),
        (set_in(1, "K", [[-3, 0, 5], [0, 9, 5], [0, 0, 1]]), "'front': K = .*positive focal"),
        (set_in(2, "K", [[1, 2], [3, 4]]), r"'right': K has shape \(2, 2\), expected \(3, 3\)"),
        (set_in(2, "size", "large"), "'right': size is not numeric"),
        (set_in(0, "R", [[1, 0, 0], [0, 1, 0], [0, 0, -1]]), "'left': R is not a rotation"),
        (set_in(0, "name", "side"), "no keypoint folder side or side_json.*found back_json"),
        (set_in(0, "name", "front"), "two cameras are named 'front'"),
        (set_in(3, "K_std", -1), "'back': K_std = -1; expected 0"),
        (lambda cameras: cameras[3].update(fx=cameras[3].pop("K")[0][0]), "key 'fy' is missing"),
        (lambda cameras: cameras.clear(), "no camera found"),
    ],
)
def test_bad_camera_files_are_named(made, change, message):
    root, _ = made
    edit_cameras(root, change)
    with pytest.raises(UserError, match=message) as error:
        read(root)
    assert "calibration.json" in str(error.value) or "of the camera file" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": [0]}, "at least two cameras"),
        ({"views": [0, 9]}, "no camera 9"),
        ({"views": ["left", "side"]}, "no camera 'side'.*left, front"),
        ({"views": [0, "left"]}, "twice"),
        ({"intrinsics": "nowhere.json"}, "nowhere.json: no such file"),
        ({"keypoints": "nowhere"}, "nowhere: no such folder"),
        ({"joint_set": "coco17"}, "coco17 has 17 points, the files .* have 25"),
        ({"first_frame": 100}, "no keypoint file with a frame number from 100"),
        ({"min_confidence": 0.95}, "no keypoint reaches"),
    ],
)
def test_bad_options_are_named(made, options, message):
    with pytest.raises(UserError, match=message):
        read(made[0], **options)


def test_wrong_root_and_broken_files(made, tmp_path):
    root, _ = made
    with pytest.raises(UserError, match=r"data.root: .*nowhere is not a folder"):
        read(tmp_path / "nowhere")
    broken = next((root / "openpose/front_json").glob("*.json"))
    broken.write_text('{"people": [{"pose_keypoi')
    with pytest.raises(UserError, match=f"{broken.name}: not an OpenPose"):
        read(root)
    (root / "calibration.json").write_text("{not json")
    with pytest.raises(UserError, match=r"calibration.json: cannot be read"):
        read(root)
    (root / "calibration.json").unlink()
    with pytest.raises(UserError, match="no camera file"):
        read(root)


def test_views_can_be_chosen_and_ordered(made):
    root, _ = made
    recording = read(root, views=["back", 1])
    assert recording.names == ("back", "front")
    everything = read(root)
    np.testing.assert_array_equal(recording.xy[:, 0], everything.xy[:, 3])
    assert read(root, first_frame=2, last_frame=3).frames.tolist() == [2, 3]


def test_a_camera_without_files_is_all_nan(made):
    root, _ = made
    for path in (root / "openpose/right_json").glob("*.json"):
        path.unlink()
    seen = np.isfinite(read(root).xy).all((0, 2, 3))
    assert seen.tolist() == [True, True, False, True]


def test_a_qualisys_file_stands_for_a_camera_file(made):
    root, _ = made
    cameras = intrinsics.read_cameras(root / "calibration.json")
    (root / "calibration.json").unlink()
    (root / "calibration").mkdir()
    path = root / "calibration/Calib.qca.txt"
    write_qca(path, cameras)
    (root / "Config.toml").write_text("[project]\nframe_rate = 60\n")  # Pose2Sim's settings
    assert read(root).names == tuple(camera.name for camera in cameras)
    text = path.read_text()
    for change, message in (
        (("focalLengthU", "focal"), "camera left: intrinsic: 'focalLengthU'"),
        (("<transform", "<moved"), "camera left: transform: "),
        (("</cameras>", ""), "not Qualisys' XML"),
    ):
        path.write_text(text.replace(*change))
        with pytest.raises(UserError, match=message):
            read(root)
