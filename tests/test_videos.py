"""Videos end to end with a detector of drawn dots; boxes, crops, cached detections, bad input."""

import csv
import json
import os
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from recording_fixture import infer, make_recording
from videos_fixture import DIST, NAMES, SIZE, DotModel, make_videos, write_video

from ptri import config
from ptri.data import transforms
from ptri.errors import UserError
from ptri.evaluation.evaluate import load_model
from ptri.geometry.cameras import to_reference
from ptri.recordings import boxes as video_boxes
from ptri.recordings import cache as recording_cache
from ptri.recordings import intrinsics
from ptri.recordings import run as recording
from ptri.recordings import video_files as video
from ptri.recordings import videos as recording_videos
from ptri.recordings.boxes import Motion, small
from ptri.recordings.detect import Cropper, Found, _followed, crop_of_box, roll_steps
from ptri.recordings.halves import compare_halves
from ptri.recordings.keypoint_files import undistort
from ptri.recordings.solve import observations, solve
from ptri.rig.check import known_joints
from ptri.structures import Cameras

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT.parent / "shared/data/pose2sim_single"
WEIGHTS = [ROOT / "checkpoints/ptri_2d_s0.pt", ROOT / "checkpoints/ptri_3d.pt"]


def settings(root, *extra):
    return config.load(
        None,
        [
            *("run.name=test", "data.kind=videos", f"data.root={root}", "data.image_size=192"),
            *("evaluate.pictures=1", *extra),
        ],
    )


def model_of(truth, **options):
    K, R, t = (torch.tensor(truth[name]) for name in ("K", "R", "t"))
    cameras = to_reference(Cameras(K, R, t))
    return DotModel(cameras=(cameras.R.float(), cameras.t.float()), **options)


def undistorted(truth):
    """(T, V, 17, 2) px of the joints without the lens's distortion."""
    parts = [undistort(truth["drawn"][:, v], truth["K"][v], np.array(DIST)) for v in range(4)]
    return np.stack(parts, 1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return root, make_videos(root, bystander=True)


@pytest.fixture(scope="module")
def processed(drawn):
    root, truth = drawn
    options = settings(root, "recording.max_roll_deg=20")
    model = model_of(truth, error_deg=1.0, spread_deg=1.0)
    source = recording_videos.open_source(options)
    detected = recording_videos.detect(model, source, options)
    folder = root / "out"
    figures, text = recording.process(model, detected.recording, options, folder, detected)
    return options, model, source, detected, figures, text, folder


# --- the whole path --------------------------------------------------------------------------


def test_keypoints_are_where_the_dots_were_drawn(drawn, processed):
    detected, truth = processed[3], undistorted(drawn[1])
    found = detected.recording
    error = np.linalg.norm(found.xy - truth, axis=-1)
    # A dot may hide half of another. Measured: median 0.61 px, 95 % 2.0 px; distorted: 0.96 px.
    assert np.nanmedian(error) < 0.8
    assert np.nanquantile(error, 0.95) < 4
    distorted = np.linalg.norm(found.xy - drawn[1]["drawn"], axis=-1)
    assert np.nanmedian(distorted) > 1.3 * np.nanmedian(error)
    # The bystander is there to be found, moves, and is never followed.
    assert np.isfinite(error).mean() > 0.9
    middle = truth.mean(2)
    assert (
        np.linalg.norm(detected.detections.crops[..., :2] - middle, axis=-1).max() < 100
    )  # the bystander is 200 px away


def test_covariances_grow_with_the_crop(processed):
    found = processed[3].detections
    scale = found.crops[..., 2] / 192
    determinant = np.linalg.det(found.covariance)  # 4 px^4 in the network's image
    expected = np.broadcast_to(4 * scale[..., None] ** 4, determinant.shape)
    seen = np.isfinite(determinant)
    np.testing.assert_allclose(determinant[seen], expected[seen], rtol=1e-9)
    given = observations(processed[3].recording, [0, 1, 2, 3], noise=0.5).keypoints.covariance
    np.testing.assert_allclose(given[0, 0, 7].numpy(), found.covariance[0, 0, 7])


def test_the_report_and_its_files(processed):
    *_, figures, text, folder = processed
    assert figures["accepted"] is True and "verdict: accepted" in text
    assert figures["frames"] == 16 and figures["views"] == 4
    # 1 deg of turn over the root of 16 frames.
    assert figures["rotation_difference_deg_worst"] < 1.0
    assert "ms a frame of all views" in text and "boxes from motion" in text
    assert "front 100 %" in text and "halves of the recording" in text
    assert figures["halves_rotation_difference_deg/back"] < 1.0
    assert figures["seconds/2d_per_frame"] > 0
    names = {path.name for path in folder.iterdir()}
    assert {"cameras.json", "cameras.toml", "detections.h5", "metrics.json"} <= names
    assert len(list((folder / "pictures").iterdir())) == 3
    with h5py.File(folder / "predictions.h5") as file:
        assert file["keypoints/covariance"].shape == (16, 4, 17, 2, 2)
        assert file["native/joints3d"].shape == (16, 17, 3)
        assert [name.decode() for name in file["camera_names"]] == list(NAMES)


def test_halves_that_disagree_reject_the_rig(processed):
    options, model, _, detected, *_ = processed
    whole = solve(model, detected.recording, options)
    assert whole.posterior.accepted[0]

    class Changing(DotModel):
        """The second half's cameras are turned the other way."""

        def solve(self, keypoints, K, seed=0):
            self.error_deg = 40.0 * (-1) ** len(self.solved)
            return super().solve(keypoints, K, seed)

    changing = Changing(cameras=model.cameras)
    halves = compare_halves(changing, detected.recording, options, whole)
    # 40 deg over the root of 8 frames, once to each side.
    assert halves.difference_deg[1:].tolist() == pytest.approx([28.3] * 3, abs=1.0)
    assert not halves.solution.posterior.accepted[0]
    assert "two halves" in halves.solution.posterior.reason[0]
    assert "half of it says more" in halves.text
    steady = compare_halves(model, detected.recording, options, whole)
    assert steady.solution.posterior.accepted[0] and "says more" not in steady.text
    few = detected.recording._replace(
        frames=detected.recording.frames[:8], xy=detected.recording.xy[:8],
        confidence=detected.recording.confidence[:8], height=detected.recording.height[:8],
        covariance=detected.recording.covariance[:8],
    )  # fmt: skip
    halves = compare_halves(changing, few, options, whole)
    assert halves.solution.posterior.accepted[0] and "not compared" in halves.text


def test_detections_are_used_again_until_stale(drawn, processed, tmp_path):
    root, truth = drawn
    _, model, _, detected, _, _, folder = processed
    path = folder / "detections.h5"

    def again(*extra, its=model):
        changed = settings(root, "recording.max_roll_deg=20", f"recording.reuse={path}", *extra)
        return recording_videos.detect(its, recording_videos.open_source(changed), changed)

    class Blind(DotModel):
        def detect(self, images):
            raise AssertionError("detected again")

    found = again(its=Blind(cameras=model.cameras))
    np.testing.assert_allclose(found.recording.xy, detected.recording.xy, atol=1e-3)
    np.testing.assert_allclose(found.recording.covariance, detected.recording.covariance, rtol=1e-5)
    assert "detections of" in found.text
    again("recording.subject_height=1800", "recording.min_confidence=0.3")  # no matter
    for extra, word in (
        (["data.image_size=128"], "other settings"),
        (["recording.every=2"], "other frames"),
        (["recording.views=[front,left,right,back]"], "other cameras, videos"),
        (["recording.boxes=boxes"], "other boxes"),
        (["recording.reuse=nowhere.h5"], "no such file"),
        ([f"recording.reuse={folder / 'predictions.h5'}"], "not a detections.h5"),
    ):
        if "boxes" in extra[0]:
            write_boxes(root / "boxes", {name: [[0, 100, 80, 380, 400]] for name in NAMES})
        with pytest.raises(UserError, match=word):
            again(*extra)
    for path_ in (root / "boxes").iterdir():
        path_.unlink()
    (root / "boxes").rmdir()
    other = model_of(truth)
    other.weight.data += 1
    with pytest.raises(UserError, match="other 2D weights"):
        again(its=other)
    # A video that was replaced by another of the same length.
    file = root / "videos/back.avi"
    kept = file.read_bytes()
    file.write_bytes(kept[:-2000] + bytes(2000))
    try:
        with pytest.raises(UserError, match="other videos"):
            again()
    finally:
        file.write_bytes(kept)


def test_the_command_line_takes_videos(drawn, tmp_path, monkeypatch, capsys):
    root, truth = drawn
    asked = []

    def fake(options, images):
        asked.append(images)
        return model_of(truth)

    monkeypatch.setattr(recording, "load_model", fake)
    common = ("configs/videos.yaml", f"data.root={root}", f"evaluate.out={tmp_path}", "run.name=a")
    quick = ("data.image_size=192", "recording.every=8", "recording.max_roll_deg=0")
    status, stdout, _ = infer(monkeypatch, capsys, *common, *quick, "evaluate.pictures=0")
    assert status == 0 and asked == [True]
    assert "verdict: accepted" in stdout and "2 frames (0 to 8)" in stdout
    reuse = f"recording.reuse={tmp_path / 'a'}"  # the folder itself, and into the same folder
    status, stdout, _ = infer(
        monkeypatch, capsys, *common, *quick, "evaluate.pictures=0", reuse, "--overwrite"
    )
    assert status == 0 and "detections of" in stdout and (tmp_path / "a/detections.h5").is_file()


# --- crops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("roll_deg", [0.0, 30.0, -75.0])
def test_points_come_back_from_a_turned_crop(drawn, roll_deg):
    root, truth = drawn
    cameras = intrinsics.read_cameras(root / "calibration.json")
    image = video.read_frame(root / "videos/left.avi", 4)[:, :, ::-1]
    points = undistorted(truth)[4, 0]
    middle = (points.min(0) + points.max(0)) / 2
    crop = [[*middle, 300.0, np.deg2rad(roll_deg)]]
    found = Cropper(DotModel(), cameras, 256)([image], [0], np.array(crop))
    error = np.linalg.norm(found.xy[0] - points, axis=-1)
    assert np.median(error) < 1
    if roll_deg:  # and the crop was turned: upright, the same crop shows the points elsewhere
        upright = (points - middle) * 256 / 300 + 127.5
        assert np.median(np.linalg.norm(found.local[0] - upright, axis=-1)) > 10
        axis = found.covariance[0, 0] @ [
            np.cos(np.deg2rad(roll_deg)),
            -np.sin(np.deg2rad(roll_deg)),
        ]
        assert np.linalg.norm(axis) == pytest.approx(4 * (300 / 256) ** 2, rel=0.01)  # fx != fy


def test_large_crops_are_averaged_not_sampled(drawn):
    cameras = intrinsics.read_cameras(drawn[0] / "calibration.json")
    stripes = np.zeros((SIZE, SIZE, 3), np.uint8)
    stripes[:, ::2] = 200
    seen = []

    class Watching(DotModel):
        def detect(self, images):
            seen.append(images)
            return super().detect(images)

    Cropper(Watching(), cameras, 64)([stripes], [0], np.array([[240.0, 240, 440, 0]]))
    spread = seen[0][0, 0, 16:48, 16:48].std() * transforms.IMAGE_STD[0] * 255
    assert spread < 8  # of stripes 200 apart; sampled: 60 and more


def test_turns_that_are_tried():
    assert np.rad2deg(roll_steps(40)).tolist() == pytest.approx([-40, -20, 0, 20, 40])
    assert roll_steps(0).tolist() == [0] and roll_steps(19).tolist() == [0]


def test_a_box_becomes_the_square_around_it(drawn):
    (camera, *_) = intrinsics.read_cameras(drawn[0] / "calibration.json")
    camera = camera._replace(dist=np.zeros(5))
    crop = crop_of_box(np.array([100, 50, 160, 250]), 1.1, camera)
    assert crop.tolist() == pytest.approx([129.5, 149.5, 220])


def person(x, size, sure):
    """One candidate: a person of a height in px at x, seen with a confidence."""
    xy = np.column_stack([np.full(17, x), np.linspace(0, size, 17)])[None]
    confidence = np.full((1, 17), sure)
    return Found(xy, np.zeros((1, 17, 2, 2)), confidence, xy, np.array([[x, size / 2, size, 0]]))


def test_the_larger_person_is_followed_not_the_surer():
    videos = [video.Video("left", Path("left.mp4"), 30, 30.0)]
    frames = [
        [[person(900, 200, 0.9), person(100 + 5 * f, 400, 0.7 - 0.3 * (f % 2))]] for f in range(20)
    ]
    assert _followed(frames, videos, range(20))[:, 0].tolist() == [1] * 20
    alone = [[candidates[:1] for candidates in frame] for frame in frames]
    assert _followed(alone, videos, range(20))[:, 0].tolist() == [0] * 20
    # Lost for a moment: nobody, rather than the bystander.
    for row in (8, 9):
        frames[row] = alone[row]
    assert _followed(frames, videos, range(20))[:, 0].tolist() == [1] * 8 + [-1] * 2 + [1] * 10


def test_a_walking_person_is_followed_in_every_tenth_frame():
    frames = [[[person(100 + 200 * f, 400, 0.8)]] for f in range(8)]  # half a height a step
    (slow,) = [video.Video("left", Path("left.mp4"), 80, 30.0)]
    assert (_followed(frames, [slow], range(0, 80, 10)) == 0).all()
    assert (_followed(frames, [slow], range(8)) == -1).any()  # the same in 1/30 s: no person can


def test_a_person_who_stops_moving_is_tracked(drawn, monkeypatch):
    root, truth = drawn
    options = settings(root, "recording.max_roll_deg=0", "recording.last_frame=7")
    found_once = Motion.boxes
    calls = []

    def blind(motion, image):
        calls.append(1)
        return found_once(motion, image) if len(calls) <= 8 else []  # two frames of four views

    monkeypatch.setattr(Motion, "boxes", blind)
    source = recording_videos.open_source(options)
    found = recording_videos.detect(model_of(truth), source, options)
    error = np.linalg.norm(found.recording.xy - undistorted(truth)[:8], axis=-1)
    assert np.isfinite(error[7]).mean() > 0.9 and np.nanmedian(error[7]) < 1


# --- boxes -------------------------------------------------------------------------------------


def scene(blobs, size=(240, 320)):
    """A grey picture with white rectangles (left, top, right, bottom)."""
    image = np.full((*size, 3), 70, np.uint8)
    for left, top, right, bottom in blobs:
        image[top:bottom, left:right] = 220
    return image


EMPTY = [scene([]) for _ in range(9)]


def test_what_moves_is_boxed_largest_first():
    motion = Motion([small(image) for image in EMPTY])
    assert motion.boxes(scene([])) == []
    found = motion.boxes(scene([(40, 60, 90, 200), (250, 90, 280, 190)]))
    np.testing.assert_allclose(found, [(40, 60, 90, 200), (250, 90, 280, 190)], atol=1.5)
    found = motion.boxes(scene([(40, 60, 90, 200), (250, 90, 260, 120)]))  # a tenth of the weight
    assert len(found) == 1
    assert motion.boxes(scene([(40, 60, 44, 64)])) == []  # a flicker


def test_a_person_in_pieces_is_one_box_and_others_are_not():
    motion = Motion([small(image) for image in EMPTY])
    pieces = [(40, 60, 90, 110), (45, 122, 85, 160), (40, 172, 90, 210)]
    (box,) = motion.boxes(scene(pieces))
    np.testing.assert_allclose(box, (40, 60, 90, 210), atol=1.5)
    first = motion.boxes(scene([pieces[0], (200, 122, 240, 160)]))[0]
    np.testing.assert_allclose(first, pieces[0], atol=1.5)


def test_who_stands_still_is_background():
    still = (200, 60, 240, 200)
    frames = [scene([still, (10 + 12 * f, 50, 50 + 12 * f, 180)]) for f in range(9)]
    motion = Motion([small(image) for image in frames])
    found = motion.boxes(frames[0])
    assert len(found) == 1 and found[0][0] == pytest.approx(10, abs=1.5)
    moved = Motion([small(image) for image in EMPTY]).boxes(frames[0])
    assert len(moved) == 2  # the control: before another background both are found


def test_a_change_of_exposure_is_no_motion():
    motion = Motion([small(image) for image in EMPTY])
    brighter = scene([(40, 60, 90, 200)])
    brighter[brighter < 100] += 40
    (box,) = motion.boxes(brighter)
    np.testing.assert_allclose(box, (40, 60, 90, 200), atol=1.5)
    half = scene([])
    half[:, 200:] += 40  # the control: 40 levels are motion where the rest stays
    np.testing.assert_allclose(motion.boxes(half), [(200, 0, 320, 240)], atol=2)


def test_boxes_are_in_the_video_s_own_pixels():
    big = [cv2.resize(scene([]), (1280, 960))] * 5
    image = np.ascontiguousarray(big[0])
    image = image.copy()
    image[240:800, 160:360] = 220
    (box,) = Motion([small(one) for one in big]).boxes(image)
    np.testing.assert_allclose(box, (160, 240, 360, 800), atol=6)


def write_boxes(folder, rows, header=video_boxes.COLUMNS):
    folder.mkdir(exist_ok=True)
    for name, lines in rows.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *lines])


def test_box_files(tmp_path):
    lines = [[2, 10, 20, 30, 60], [6, 18, 20, 38, 60], [8, "", "", "", ""], [9, 1, 2, 3, 4]]
    write_boxes(tmp_path / "boxes", {"a": lines})
    boxes = video_boxes.read_box_files(tmp_path / "boxes", ["a"], range(11))[:, 0]
    assert boxes[2].tolist() == [10, 20, 30, 60] and boxes[4].tolist() == [14, 20, 34, 60]
    assert np.isnan(boxes[[0, 1, 7, 8, 10]]).all() and boxes[9].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([[0, 10, 20, 5, 60]], "line 2: left < right"),
        ([[0, 10, 20, 30, 60], [0, 10, 20, 30, 60]], "line 3: frame 0 again"),
        ([[0, 10, 20, 30, "wide"]], "line 2: '0,10,20,30,wide'"),
        ([[0, 10, "", 30, 60]], "expected four numbers, or none"),
        ([[0, 10, 20, 30]], "expected four numbers, or none"),
        ([], "no boxes"),
    ],
)
def test_bad_box_files(tmp_path, lines, message):
    write_boxes(tmp_path / "boxes", {"a": lines})
    with pytest.raises(UserError, match=message):
        video_boxes.read_box_files(tmp_path / "boxes", ["a"], range(3))


def test_boxes_that_are_missing(tmp_path):
    write_boxes(tmp_path / "boxes", {"a": [[0, 1, 2, 3, 4]]}, header=("x", "y", "w", "h", "f"))
    with pytest.raises(UserError, match="first line must be frame,left,top,right,bottom"):
        video_boxes.read_box_files(tmp_path / "boxes", ["a"], [0])
    with pytest.raises(UserError, match=r"no b\.csv"):
        video_boxes.read_box_files(tmp_path / "boxes", ["a", "b"], [0])
    with pytest.raises(UserError, match="is no folder"):
        video_boxes.read_box_files(tmp_path / "elsewhere", ["a"], [0])


def test_given_boxes_are_what_is_looked_at(drawn, tmp_path):
    root, truth = drawn
    xy = truth["drawn"]
    low, high = xy.min(2) - 12, xy.max(2) + 12
    rows = {
        name: [[f, *low[f, v], *high[f, v]] for f in (0, 6, 12)] for v, name in enumerate(NAMES)
    }
    rows["right"][1] = [6, "", "", "", ""]
    write_boxes(tmp_path / "mine", rows)
    options = settings(root, f"recording.boxes={tmp_path / 'mine'}", "recording.every=6")
    source = recording_videos.open_source(options)
    found = recording_videos.detect(model_of(truth), source, options)
    assert "boxes from box files" in found.text and "right 67 %" in found.text
    assert np.isnan(found.recording.xy[1, 2]).all()
    error = np.linalg.norm(found.recording.xy - undistorted(truth)[::6], axis=-1)
    assert np.nanmedian(error) < 0.8
    expected = undistort(((low + high - 1) / 2)[::6, 0], truth["K"][0], np.array(DIST))
    np.testing.assert_allclose(found.detections.crops[:, 0, :2], expected, atol=1e-6)


def test_boxes_from_keypoint_files(tmp_path):
    make_recording(tmp_path, num_frames=4)  # 1000 px pictures; only keypoints and K matter
    found = recording.open_recording(settings(tmp_path))
    boxes = video_boxes.keypoint_boxes(found, [0, 2, 9])
    tree = json.loads(
        (tmp_path / "openpose/front_json/front_000000000002_keypoints.json").read_text()
    )
    xy = np.reshape(tree["people"][0]["pose_keypoints_2d"], (-1, 3))[:, :2]
    np.testing.assert_allclose(boxes[1, 1], [*xy.min(0), *(xy.max(0) + 1)], atol=0.05)
    assert np.isnan(boxes[2]).all()


# --- bad input -----------------------------------------------------------------------------------


def cut(root, name, frames, size=SIZE, fps=25.0, suffix=".avi"):
    for path in (root / "videos").glob(f"{name}.*"):
        path.unlink()
    image = np.full((size, size, 3), 90, np.uint8)
    write_video(root / f"videos/{name}{suffix}", [image] * frames, fps)


BROKEN = {
    "no video of camera back": lambda root: (root / "videos/back.avi").unlink(),
    r"different lengths \(left.avi 3, front.avi 3, right.avi 2": lambda root: cut(root, "right", 2),
    "not a video that OpenCV can read": lambda root: (root / "videos/left.avi").write_text("no"),
    "camera 'front' has size and K for 480 x 480": lambda root: cut(root, "front", 3, size=400),
    "frame rates differ": lambda root: cut(root, "back", 3, fps=30.0),
}


@pytest.fixture
def plain(tmp_path):
    """Three grey frames of four cameras."""
    make_videos(tmp_path, num_frames=1)
    for name in NAMES:
        cut(tmp_path, name, 3)
    return tmp_path


@pytest.mark.parametrize("message", BROKEN)
def test_bad_videos(plain, message):
    BROKEN[message](plain)
    with pytest.raises(UserError, match=message):
        recording_videos.open_source(settings(plain))


def test_lengths_may_differ_beyond_the_last_frame(plain):
    cut(plain, "right", 2)
    source = recording_videos.open_source(settings(plain, "recording.last_frame=1"))
    assert source.numbers == [0, 1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["recording.last_frame=7"], r"has 3 frames \(0 to 2\)"),
        (["recording.first_frame=3"], "no frame from 3 to 2"),
        (["recording.views=[left]"], "at least two cameras"),
        (["recording.boxes=nowhere"], "nowhere is no folder"),
        (["recording.boxes=keypoints"], "no keypoint files"),
        (["recording.videos=elsewhere"], "no video of camera left, front"),
        (["data.root=nowhere"], "nowhere is not a folder"),
    ],
)
def test_bad_settings(plain, extra, message):
    with pytest.raises(UserError, match=message):
        recording_videos.open_source(settings(plain, *extra))


def test_nobody_moves(plain):
    options = settings(plain)
    with pytest.raises(UserError, match=r"nobody was found.*recording\.boxes"):
        recording_videos.detect(DotModel(), recording_videos.open_source(options), options)


def test_a_video_shorter_than_its_header(plain):
    videos = recording_videos.open_source(settings(plain)).videos
    long = [one._replace(num_frames=5) for one in videos]
    with pytest.raises(UserError, match="frame 3 of 5 cannot be read"):
        list(video.read_in_step(long, range(5)))


def test_one_file_for_two_cameras(plain):
    tree = json.loads((plain / "calibration.json").read_text())
    tree["cameras"][0]["name"] = "bac"
    (plain / "calibration.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="only video for cameras bac, back"):
        recording_videos.open_source(settings(plain))


def test_rotation_by_metadata(tmp_path):
    """A film stored lying and shown upright, as phones write them: K is for it as shown."""
    path = tmp_path / "videos/left.mp4"
    write_video(path, [np.full((48, 96, 3), 90, np.uint8)] * 4, codec="mp4v")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turned = [0, 1 << 16, 0, -(1 << 16) % (1 << 32), 0, 0, 48 << 16, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big") for value in turned)
    path.write_bytes(bytes(data))
    lying, upright = (
        intrinsics.CameraEntry("left", size, np.eye(3), np.zeros(5), None, None)
        for size in ((96, 48), (48, 96))
    )
    assert video.open_videos([upright], tmp_path, "auto")[0].num_frames == 4
    with pytest.raises(UserError, match="48 x 96 px as shown, rotated by 90 deg by its metadata"):
        video.open_videos([lying], tmp_path, "auto")


def test_fingerprints_tell_files_apart(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(1000))
    first = video.fingerprint(path)
    assert first == video.fingerprint(path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert video.fingerprint(path) != first


def test_an_older_format_is_not_read(processed, tmp_path):
    detected = processed[3]
    recording_cache.write(tmp_path / "detections.h5", detected.detections, detected.depends_on)
    with h5py.File(tmp_path / "detections.h5", "a") as file:
        file.attrs["format"] = "ptri detections 0"
    with pytest.raises(UserError, match="detect again"):
        recording_cache.read(tmp_path, detected.depends_on)


# --- the sample recording ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not (SAMPLE.is_dir() and all(path.is_file() for path in WEIGHTS)),
    reason="needs the sample recording and weights",
)
def test_the_sample_s_subject_is_found_and_a_wrong_rig_is_rejected(tmp_path):
    options = config.load(
        ROOT / "configs/videos.yaml",
        [f"data.root={SAMPLE}", "recording.every=4", "evaluate.pictures=1"],
    )
    model = load_model(options, images=True)
    source = recording_videos.open_source(options)
    detected = recording_videos.detect(model, source, options)
    # The subject is the larger person of the OpenPose keypoints, which nothing here has used.
    keypoints = config.load(ROOT / "configs/recording.yaml", [f"data.root={SAMPLE}"])
    other = known_joints(observations(recording.open_recording(keypoints), [0, 1, 2, 3], 0.01))
    subject = other.xy[detected.detections.frames].numpy()
    low, high = np.nanmin(subject, 2), np.nanmax(subject, 2)
    crops = detected.detections.crops
    right = ((crops[..., :2] > low) & (crops[..., :2] < high)).all(-1)
    share = crops[..., 2] / (high - low).max(-1)
    right &= (share > 0.6) & (share < 2)
    assert right.mean() > 0.9  # measured: 0.97
    figures, _ = recording.process(model, detected.recording, options, tmp_path, detected)
    assert not figures["accepted"] or figures["rotation_difference_deg_worst"] < 5
