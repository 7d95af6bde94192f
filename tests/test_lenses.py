"""Lenses that nobody told, or told wrongly: what the API, recordings and the verdict make of it."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from recording_fixture import edit_cameras, make_recording
from rigs_fixture import rotation_error_deg, scene

import ptri
from ptri.config import PosteriorConfig, RecordingConfig
from ptri.errors import UserError
from ptri.evaluation.metrics import rotation_level
from ptri.models.weights import find_model
from ptri.posterior.modes import FocalLengths
from ptri.recordings import intrinsics
from ptri.recordings.keypoint_files import distort, read_recording
from ptri.recordings.solve import rig_input
from ptri.recordings.write_cameras import refocused_distortion
from ptri.rig import check
from ptri.rig import estimate as rig_estimate
from ptri.rig.estimate import solve_cameras
from ptri.rig.lenses import (
    DEVICE_STD,
    EQUIVALENT_STD,
    EXACT,
    FAMILIES,
    UNKNOWN_STD,
    UNLIKE_STD,
    USUAL_FOCAL,
    Lenses,
    devices,
    find_lenses,
)
from ptri.verdict.lenses import wrong_lenses
from ptri.verdict.verdict import Code, Verdict

FRAMES = 24


@pytest.fixture(scope="module")
def walk():
    return scene(FRAMES, seed=1)


def keypoints_of(walk):
    return walk.xy, walk.confidence, walk.covariance


def test_unknown_focal_lengths_are_found(walk):
    xy, confidence, covariance = keypoints_of(walk)
    size = 2 * walk.K[:, :2, 2] + 1
    rig = ptri.estimate_rig(xy, None, confidence, covariance, size=size)
    true = walk.K[:, 0, 0]
    off = (rig.K[:, 0, 0] / true).log()
    guess = (USUAL_FOCAL * size.amin(1) / true).log()
    assert float(guess.abs().max()) > 0.08  # there is something to be found
    assert float(off.abs().max()) < 0.12, off  # measured 0.02 to 0.09: the person hardly moves
    assert float(off.abs().median()) < 0.5 * float(guess.abs().median())
    assert float((off / rig.focal_std).abs().max()) < 3
    assert rig.accepted and float(rotation_error_deg(rig, walk).max()) < 2
    assert rig.posterior.log_focal.shape == (512, 1, 4)
    # Joints are where they are under the cameras with the focal lengths that were found.
    camera = torch.einsum("vac,tjc->tvja", rig.R, rig.joints3d) + rig.t[:, None]
    again = camera[..., :2] / camera[..., 2:] * rig.K[:, None, [0, 1], [0, 1]]
    again = again + rig.K[:, None, :2, 2]
    assert float((again - xy).norm(dim=-1).nanmedian()) < 8  # px


def test_unknown_lenses_of_a_rig_are_alike():
    """A rig of wide lenses has no long one; a label says more, a stated deviation stands alone."""
    focal = find_lenses(None, 3, Lenses((720, 1280), group=["a", "a", None]))[1]
    covariance = focal @ focal.T
    assert covariance.diag().tolist() == pytest.approx([UNKNOWN_STD**2] * 3)
    apart = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    assert float(apart.sqrt()) == pytest.approx(UNLIKE_STD * 2**0.5)
    assert covariance[0, 1] > 0.99 * covariance[0, 0]
    stated = find_lenses(None, 2, Lenses((720, 1280), K_std=0.2))[1]
    assert (stated @ stated.T)[0, 1] == 0


def test_a_principal_point_that_is_off(walk, monkeypatch):
    """All keypoints of a view shifted, as by a crop that is not about the middle of the picture: a
    turn of its camera that nothing shows."""
    xy, *rest = keypoints_of(walk)
    size = 2 * walk.K[:, :2, 2] + 1
    shift = 0.01 * torch.tensor([[0.9, -0.5], [-0.8, 0.7], [0.4, 0.9], [-0.6, -0.9]]) * size
    xy, lenses = xy + shift[:, None], Lenses(K_std=[0.01] * 4, source=["device"] * 4)
    levels, model = [], find_model(None, torch.device("cpu"))
    for std in (0.0085, 0.0):
        monkeypatch.setattr(check, "CENTRE_STD", std)
        given = check.check_input(xy, walk.K, *rest, lenses=lenses)
        posterior = solve_cameras(model, given, PosteriorConfig()).posterior
        levels.append(rotation_level(posterior, walk.R[None].double())[0])
    # Measured 0.96, 0.45, 0.55 and 1.00, 0.99, 0.95.
    assert float(levels[0].max()) < 0.97 < 0.98 < float(levels[1].max())
    assert bool((levels[0] < levels[1]).all())


def test_exact_intrinsics_stay(walk):
    xy, confidence, covariance = keypoints_of(walk)
    rig = ptri.estimate_rig(xy[:4], walk.K, confidence[:4], covariance[:4], K_std=0)
    torch.testing.assert_close(rig.K, walk.K.double())
    assert not rig.focal_std.any() and rig.posterior.log_focal.shape == (512, 1, 0)


@pytest.mark.parametrize("views", [[2], [0, 1, 2, 3]])
def test_wrong_focal_lengths_are_named(walk, views):
    xy, confidence, covariance = keypoints_of(walk)
    K = walk.K.double().clone()
    K[views, 0, 0] *= 1.25
    K[views, 1, 1] *= 1.25
    rig = ptri.estimate_rig(xy, K, confidence, covariance)
    assert rig.verdict.code is (Code.FOCAL_LENGTH if len(views) == 1 else Code.FOCAL_LENGTHS)
    assert rig.verdict.view == (2 if len(views) == 1 else None)
    assert rig.verdict.value == pytest.approx(-0.2, abs=0.05)
    assert "shorter than" in rig.reason
    # The estimate is that of unknown focal lengths.
    assert float((rig.K[:, 0, 0] / walk.K[:, 0, 0]).log().abs().max()) < 0.06
    assert float(rotation_error_deg(rig, walk).max()) < 2


def test_a_lens_that_turns_out_to_be_right_is_not_named(walk, monkeypatch):
    """Where it is doubted and then found within what K says of itself."""
    arrays = [part[:8] for part in keypoints_of(walk)]
    plain = ptri.estimate_rig(arrays[0], walk.K, *arrays[1:])
    doubted = []

    def doubt(told, prior):
        doubted.append(1)
        return [2], 1.0001 * prior

    monkeypatch.setattr(rig_estimate, "wrong_lenses", doubt)
    rig = ptri.estimate_rig(arrays[0], walk.K, *arrays[1:])
    assert doubted and rig.accepted and torch.equal(rig.R, plain.R)


def test_words():
    one = Verdict(Code.FOCAL_LENGTH, 1, value=-0.18)
    words = one.words("ab")
    assert "the focal length of camera b seems 18% shorter than what it was taken for" in words
    both = Verdict(Code.FOCAL_LENGTHS, value=0.3)
    assert "of all views seem 30% longer than what they were taken for" in both.words()


def told(log_focal, std):
    log_focal = torch.tensor(log_focal, dtype=torch.float64)
    return FocalLengths(log_focal, std**2 * torch.eye(len(log_focal), dtype=torch.float64))


@pytest.mark.parametrize(
    ("log_focal", "std", "views"),
    [
        ([0.01, -0.02, 0.01, 0.0], 0.02, []),
        ([0.0, 0.2, 0.01, 0.0], 0.02, [1]),
        ([0.0, 0.2, 0.01, 0.0], 0.2, []),  # so little is known of it
        ([0.0, 0.2, 0.01, -0.15], 0.02, [1, 3]),
        ([0.2, 0.2, 0.19, 0.21], 0.02, [0, 1, 2, 3]),
    ],
)
def test_the_explanation_with_the_largest_evidence(log_focal, std, views):
    prior = 0.01**2 * torch.eye(4, dtype=torch.float64)
    found, doubt = wrong_lenses(told(log_focal, std), prior)
    assert found == views
    assert (doubt is None) == (not views)


def test_what_is_known_of_lenses():
    K, focal, _ = find_lenses(
        None, 3, Lenses((720, 1280), camera=["iPhone14,5", "iPhone14,5", None])
    )
    std = focal.norm(dim=1)
    assert std.tolist() == pytest.approx([DEVICE_STD, DEVICE_STD, UNKNOWN_STD])
    assert K[0, 0, 0] == pytest.approx(720 * devices()["iPhone14,5"]["focal"])
    covariance = focal @ focal.T
    assert covariance[0, 1] > 0.9 * covariance[0, 0] > 0 == covariance[0, 2]
    family = find_lenses(None, 2, Lenses((720, 1280), camera="iPhone"))[1]
    assert (family @ family.T)[0, 1] == 0  # two models may differ
    given = np.eye(3)[None].repeat(2, 0)
    assert find_lenses(given, 2, EXACT)[1] is None
    for std in (0.1, np.array(0.1), torch.tensor(0.1), np.array([0.1, 0.1]), [0.1, 0.1]):
        assert find_lenses(given, 2, Lenses(K_std=std))[1].diagonal().tolist() == pytest.approx(
            [0.1, 0.1]
        )
    labelled = find_lenses(given, 2, Lenses(K_std=0.2, group=["a", "a"]))[1]
    assert (labelled @ labelled.T)[0, 1] > 0.99 * 0.2**2


@pytest.mark.parametrize(
    ("K", "lenses", "message"),
    [
        (None, Lenses(), "size is needed"),
        (None, Lenses((0, 5)), "size: expected width and height"),
        (None, Lenses((720, 1280), camera="Nokia"), "camera: 'Nokia' is no known device"),
        (None, Lenses((720, 1280), camera=["iPhone"]), "camera: ..iPhone..; expected a name"),
        (None, Lenses((720, 1280), camera=5), "camera: 5; expected a name"),
        (None, Lenses((720, 1280), camera=[["a"], None]), "camera: .*; expected a name"),
        (None, Lenses((720, float("inf"))), "size: expected width and height"),
        (np.eye(3), Lenses(K_std=5j), "K_std: 5j"),
        (np.eye(3), Lenses(group=5), "group: 5; expected a name"),
        (np.eye(3), Lenses(K_std=[0.01, 0.25], group=["a", "a"]), "known to 1.0% and to 25.0%"),
        (np.eye(3), Lenses(camera="iPhone"), "K is given, too"),
        (np.eye(3), Lenses(K_std=-1), "K_std: -1; expected"),
        (np.eye(3), Lenses(K_std=True), "K_std: True"),
        (np.eye(3), Lenses(K_std=[0, 0.1]), "0 for some views"),
        (np.eye(3), Lenses(group=["a"]), "group: ..a..; expected a name"),
    ],
)
def test_bad_lenses_are_refused(K, lenses, message):
    with pytest.raises(UserError, match=message):
        find_lenses(K, 2, lenses)


def test_a_filter_finds_focal_lengths(walk):
    xy, confidence, covariance = keypoints_of(walk)
    stream = ptri.RigFilter(size=2 * walk.K[:, :2, 2] + 1)
    for part in (slice(0, 12), slice(12, FRAMES)):
        rig = stream.update(xy[part], confidence[part], covariance[part])
    assert float((rig.K[:, 0, 0] / walk.K[:, 0, 0]).log().abs().max()) < 0.12


# --- recordings --------------------------------------------------------------------------------


def test_a_camera_file_without_intrinsics(tmp_path):
    make_recording(tmp_path)

    def change(cameras):
        for camera, rest in zip(
            cameras, ({"camera": "iPhone14,5"}, {}, {"K_std": 0.1}, {"group": "g"})
        ):
            camera.pop("K")
            camera.pop("dist", None)
            camera.update(rest)
        cameras[1]["dist"] = [0.1, 0, 0, 0, 0]

    edit_cameras(tmp_path, change)
    recording = read_recording(tmp_path, RecordingConfig())
    stds = [camera.K_std for camera in recording.cameras]
    assert stds == pytest.approx([DEVICE_STD, UNKNOWN_STD, 0.1, UNKNOWN_STD])
    assert [camera.group for camera in recording.cameras] == ["iPhone 13", None, None, "g"]
    np.testing.assert_allclose(recording.cameras[0].dist, devices()["iPhone14,5"]["dist"])
    assert recording.cameras[1].dist.tolist() == [0.1, 0, 0, 0, 0]
    given = rig_input(recording, 0.03)
    assert given.focal.shape[1] == 4
    assert given.focal[0].norm(dim=1).tolist() == pytest.approx(stds)


def test_devices_in_place_of_a_camera_file(tmp_path):
    make_recording(tmp_path)
    first = intrinsics.open_cameras(tmp_path, RecordingConfig())[0]
    named = {first.name: "iPhone14,5"}
    cameras = intrinsics.open_cameras(tmp_path, RecordingConfig(cameras=named))
    assert cameras[0].K_std == pytest.approx(DEVICE_STD) and cameras[1].K_std == 0.01
    with pytest.raises(UserError, match="no camera nobody"):
        intrinsics.open_cameras(tmp_path, RecordingConfig(cameras={"nobody": "iPhone"}))
    with pytest.raises(UserError, match="no known device"):
        intrinsics.open_cameras(tmp_path, RecordingConfig(cameras={first.name: "Nokia"}))


def write_tagged(path, **tags):
    """A small video with metadata, as phones write them."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update({f"com.apple.quicktime.{k}": v for k, v in tags.items()})
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        for packet in stream.encode(av.VideoFrame(128, 72, "yuv420p")):
            container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_videos_tell_their_cameras(tmp_path):
    equivalent = "camera.focal_length.35mm_equivalent"
    tags = {
        "main": {"model": "iPhone 13", equivalent: "26"},
        "wide": {"model": "iPhone 13", equivalent: "13 mm"},  # the other lens
        "new": {"model": "iPhone 99"},
        "other": {"model": "Nobody", equivalent: "24"},
        "bare": {},
        "odd": {"model": "iPhone 13", equivalent: "?"},
    }
    for name, values in tags.items():
        write_tagged(tmp_path / "videos" / f"{name}.mov", **values)
    found = {c.name: c for c in intrinsics.open_cameras(tmp_path, RecordingConfig())}
    focal = {name: camera.K[0, 0] / 72 for name, camera in found.items()}
    std = {name: camera.K_std for name, camera in found.items()}
    known = devices()["iPhone14,5"]
    expected = {
        "main": (known["focal"], DEVICE_STD),
        "wide": (13 / 36 * 16 / 9, EQUIVALENT_STD),
        "new": FAMILIES["iPhone"],
        "other": (24 / 36 * 16 / 9, EQUIVALENT_STD),
        "bare": (USUAL_FOCAL, UNKNOWN_STD),
        "odd": (known["focal"], DEVICE_STD),
    }
    for name, (value, deviation) in expected.items():
        assert focal[name] == pytest.approx(value), name
        assert std[name] == pytest.approx(deviation), name
    assert found["main"].group == "iPhone 13" and found["wide"].group is None
    assert found["main"].dist.tolist() == known["dist"] and not found["wide"].dist.any()
    # What the user says counts before what the file says.
    named = RecordingConfig(cameras={"main": "iPad", "wide": "iPhone 16 Pro"})
    found = {c.name: c for c in intrinsics.open_cameras(tmp_path, named)}
    assert found["main"].K_std == pytest.approx(0.06)
    assert found["wide"].K[0, 0] == pytest.approx(72 * devices()["iPhone17,1"]["focal"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": 5}, "camera: .*5.*; expected a name|no known device"),
        ({"camera": ["iPhone"]}, "expected a name"),
        ({"group": [1]}, "group = .1.; expected a label"),
        ({"K_std": True}, "K_std = True; expected 0"),
        ({"K": [[900, 0, 360], [0, 900, 640], [0, 0, 1]], "camera": "iPhone"}, "K and camera"),
        ({"cx": 360.0}, "key 'fx' is missing"),
    ],
)
def test_bad_lenses_in_a_camera_file(tmp_path, change, message):
    entry = {"name": "a", "size": [720, 1280]} | change
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"cameras": [entry]}))
    with pytest.raises(UserError, match=message):
        intrinsics.read_cameras(path)


def test_distortion_bends_pixels_as_before():
    K = np.array([[900.0, 0, 360], [0, 900, 640], [0, 0, 1]])
    longer = K.copy()
    longer[0, 0] = longer[1, 1] = 1000.0
    dist = np.array([0.1, -0.3, 1e-3, -2e-3, 0.2])
    camera = intrinsics.CameraEntry("a", (720, 1280), K, dist, None, None)
    points = np.array([[100.0, 100.0], [600.0, 900.0], [360.0, 1200.0]])
    expected = distort(points, K, dist)
    found = distort(points, longer, refocused_distortion(camera, longer))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(distort(points, longer, dist) - expected).max() > 1


def test_without_a_camera_file_videos_are_needed(tmp_path):
    with pytest.raises(UserError, match="not two videos"):
        intrinsics.open_cameras(tmp_path, RecordingConfig(intrinsics="none"))


def test_cameras_that_were_written_can_be_read(tmp_path):
    """K_std and group of an estimate serve the next recording."""
    entry = {"name": "a", "size": [720, 1280], "K": [[900, 0, 360], [0, 900, 640], [0, 0, 1]]}
    entry |= {"dist": [0] * 5, "R": None, "t": None, "K_std": 0.02, "group": None}
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps({"cameras": [{k: v for k, v in entry.items() if v is not None}]}))
    (camera,) = intrinsics.read_cameras(path)
    assert camera.K_std == 0.02 and camera.group is None
