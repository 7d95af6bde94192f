"""CMU Panoptic: files read, people and cameras chosen, frames of images and videos, bad trees."""

import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fake_model import FakeModel, fake_models_solve_themselves  # noqa: F401
from panoptic_fixture import (
    CAMERAS,
    TO_FILES,
    make_panoptic,
    to_coco19,
    write_bodies,
    write_calibration,
)
from prepare_panoptic import main as prepare

from ptri import config
from ptri.config import DataConfig
from ptri.data.index import image_folders
from ptri.data.multiview import MultiView, build_index, open_split
from ptri.data.panoptic import CAMERA_SETS, choose_persons
from ptri.data.panoptic_files import (
    _parse_bodies,
    bone_lengths,
    check_units,
    inside_shares,
    read_sequence,
    sequence_names,
    upright,
)
from ptri.data.video_frames import Video
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.models.weights import read_network2d
from ptri.skeleton import H36M17

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared/data"
MINI = ROOT / "data/panoptic_mini"  # rendered people, of tests/render_panoptic.py
TRAIN, TEST = "171026_pose1", "171204_pose5"
UNKNOWN = [H36M17.joints.index(name) for name in ("spine", "head")]


def data(root, **changes) -> DataConfig:
    options = {"train_sequences": [TRAIN], "test_sequences": [TEST], "image_size": 96}
    return DataConfig(kind="panoptic", root=str(root), **(options | changes))


def samples(root, **changes) -> MultiView:
    options = data(root, **changes)
    return MultiView(build_index(options, "test"), options)


def fails(words, root, split="test", **changes):
    with pytest.raises(UserError, match=words) as caught:
        build_index(data(root, **changes), split)
    assert "\n" not in str(caught.value) and "UserError" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("panoptic")
    return root, make_panoptic(root, crowded=(1,))


@pytest.fixture
def copied(tiny, tmp_path):
    shutil.copytree(tiny[0], tmp_path / "tree")
    return tmp_path / "tree"


def test_joints_and_cameras_are_ours(tiny):
    root, joints = tiny
    dataset = samples(root)
    index = dataset.index
    assert index.labels.frame[index.rows].tolist() == [2, 4, 5]  # one frame has two people
    np.testing.assert_array_equal(np.isnan(index.labels.joints[0]).any(1).nonzero()[0], UNKNOWN)
    known = np.delete(index.labels.joints[index.rows], UNKNOWN, 1)
    expected = np.delete(joints[1, [0, 2, 3]], UNKNOWN, 1)
    np.testing.assert_allclose(known, expected, atol=0.1)  # files have four decimals, cm
    # The same cameras as in the files: they project the same points to the same pixels.
    entries = json.loads((root / TEST / f"calibration_{TEST}.json").read_text())["cameras"]
    camera = next(entry for entry in entries if entry["name"] == "00_03")
    R, t = np.array(camera["R"]), np.array(camera["t"])
    _, R_ours, t_ours = index.camera_of(index.rows[0], index.labels.camera_names.index("00_03"))
    point = joints[1, 0, 3]
    in_cm = R @ (TO_FILES @ point) + t[:, 0]
    np.testing.assert_allclose(R_ours @ point + t_ours, 10 * in_cm, atol=1e-6)
    for sample in dataset:
        projected = project(sample.joints3d, sample.cameras)
        torch.testing.assert_close(
            projected, sample.joints2d, atol=0.02, rtol=0, equal_nan=True
        )  # px
        assert not sample.visible[:, UNKNOWN].any() and sample.visible.float().mean() > 0.8


def test_images_are_undistorted(tmp_path):
    pictures = {}
    for name, dist in (("bent", (2.0, 0.0, 0.05, -0.05, 0.0)), ("plain", (0, 0, 0, 0, 0))):
        make_panoptic(tmp_path / name, (TEST,), num_frames=1, dist=dist)
        pictures[name] = samples(tmp_path / name)
    bent, plain = (pictures[name][0].images for name in ("bent", "plain"))
    labels = pictures["bent"].index.labels
    labels.dist[:] = 0  # the control
    ignored = pictures["bent"][0].images

    def overlap(a, b):  # of the coloured limbs: what is behind them is not bent
        limbs = [(part.amax(1) - part.amin(1)) > 1.2 for part in (a, b)]
        return float((limbs[0] & limbs[1]).sum() / (limbs[0] | limbs[1]).sum())

    # Measured over seeds 0 to 3: 0.93 to 0.94, and the control 0.85 to 0.89 (0.86 here).
    assert overlap(bent, plain) > 0.92
    assert overlap(ignored, plain) < 0.9


def test_images_and_videos_are_the_same_samples(tmp_path):
    for videos in (False, True):
        make_panoptic(tmp_path / str(videos), (TEST,), num_frames=6, videos=videos)
    stills, moving = (samples(tmp_path / str(videos)) for videos in (False, True))
    assert (tmp_path / "True" / TEST / "hdVideos/hd_00_01.mp4").is_file()
    assert len(stills) == len(moving) == 6
    for i in (0, 4, 1, 5, 5, 2):  # forwards and backwards
        a, b = stills[i], moving[i]
        assert torch.equal(a.joints3d.nan_to_num(), b.joints3d.nan_to_num())
        assert torch.equal(a.cameras.K, b.cameras.K)
        # A unit is 58 grey values. Measured, seeds 0 to 3: 0.06; of the next frame 0.23 or more.
        assert (a.images - b.images).abs().mean() < 0.1
        other = stills[(i + 1) % 6].images
        assert (other - b.images).abs().mean() > 0.15  # the control


def test_frames_of_a_video_are_found_in_any_order():
    path = SHARED / "pose2sim_single/videos/cam01.mp4"  # H.264, with frames out of order
    if not path.is_file():
        pytest.skip("needs the sample recording")
    frames = [cv2.resize(Video(path).read(0), (108, 192))]
    video = Video(path)
    for number in range(1, 90):
        frames.append(cv2.resize(video.read(number), (108, 192)))
    for number in (70, 3, 2, 89, 88, 0, 65):
        np.testing.assert_array_equal(cv2.resize(video.read(number), (108, 192)), frames[number])
    with pytest.raises(UserError, match=r"cam01\.mp4: frame 100 cannot be read"):
        video.read(100)
    np.testing.assert_array_equal(cv2.resize(video.read(1), (108, 192)), frames[1])


def test_camera_sets():
    numbers = sorted({number for members in CAMERA_SETS.values() for number in members})
    expected = {
        "CMU0": "3 6 12 13 23",
        "CMU1": "1 2 3 4 6 7 10",
        "CMU2": "12 16 18 19 22 23 30",
        "CMU3": "10 12 16 18",
        "CMU4": "6 7 10 12 16 18 19 22 23 30",
    }
    for name, members in expected.items():
        # As a YAML file or the command line says it, where 00_10 must not become an octal number.
        settings = config.load(None, ["run.name=x", f"data.views={name}"])
        index = build_index(data(MINI, views=settings.data.views), "test")
        chosen = [index.labels.camera_names[camera] for camera in index.cameras]
        assert chosen == [f"00_{int(number):02d}" for number in members.split()]
        first = index.image_path(index.rows[0], index.cameras[0])
        assert first.parent.name == chosen[0] and first.is_file()
    for text, chosen in (("[00_10, 3]", (10, 3)), ("[CMU3, 1]", (10, 12, 16, 18, 1))):
        settings = config.load(None, ["run.name=x", f"data.views={text}"])
        assert build_index(data(MINI, views=settings.data.views), "test").cameras == chosen
    everything = build_index(data(MINI), "test")
    assert list(everything.cameras) == numbers  # those with images
    fails(r"no camera 00_31.*CMU0", MINI, views=[31])
    fails("camera 00_00 has no images", MINI, views=[0, 1])
    fails("names a camera twice", MINI, views=["CMU1", 3])
    fails("1 view only", MINI, views="00_03")


def test_who_counts(tmp_path, caplog):
    def warned(root=MINI, split="test", **changes):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            index = build_index(data(root, **changes), split)
        return index, caplog.text

    alone, text = warned()
    assert alone.labels.frame[alone.rows].tolist() == [139, 141, 142, 144]
    assert "of 6 frames 2 left out: 2 with several people (data.person chooses one)" in text
    first, text = warned(person=7)
    assert first.labels.frame.tolist() == list(range(139, 145)) and not text
    other, text = warned(person=3)
    assert other.labels.frame.tolist() == [140, 143] and "4 with other people only" in text
    hip, away = H36M17.root, other.labels.joints - first.labels.joints[[1, 4]]
    assert np.linalg.norm(away[:, hip], axis=-1).min() > 500  # mm: somebody else
    fails("data.person: .*no frame of person 5; its persons are 3, 7", MINI, person=5)
    # Everything of a tree, of which one sequence has nobody who counts.
    shutil.copytree(MINI, tmp_path / "tree")
    for path in (tmp_path / "tree" / TRAIN / "hdPose3d_stage1_coco19").iterdir():
        path.write_text(json.dumps({"bodies": []}))
    _, text = warned(tmp_path / "tree", "all")
    assert "of 10 frames 6 left out: 4 with nobody, 2 with several people" in text
    # An id that a frame has twice is nobody.
    file = tmp_path / "tree" / TEST / "hdPose3d_stage1_coco19/body3DScene_00000140.json"
    file.write_text(file.read_text().replace('"id": 3', '"id": 7'))
    twice, text = warned(tmp_path / "tree", person=7)
    assert len(twice.rows) == 5 and "1 with that id twice" in text
    fails(
        r"data\.test_sequences: .* no sequence for an empty list; it holds 171026",
        MINI,
        test_sequences=[],
    )


def test_bodies_are_read_once(tmp_path):
    shutil.copytree(MINI, tmp_path / "tree")
    _parse_bodies.cache_clear()
    for views in CAMERA_SETS:
        build_index(data(tmp_path / "tree", views=views), "test")
    assert _parse_bodies.cache_info().misses == 1
    file = tmp_path / "tree" / TEST / "hdPose3d_stage1_coco19/body3DScene_00000139.json"
    file.write_text(json.dumps({"bodies": []}))  # the control: a change is seen
    assert len(build_index(data(tmp_path / "tree"), "test").rows) == 3


def test_a_network_sees_people_where_the_labels_say():
    """Images, frames, cameras, lenses and boxes of the rendered miniature belong together."""
    network, size = read_network2d(ROOT / "checkpoints/ptri_2d_s0.pt")
    with torch.no_grad():
        sample, later = (samples(MINI, image_size=size)[i] for i in (0, 1))
        xy = network.eval()(sample.images).keypoints.xy

    def error(truth):  # median, as a share of the image's side
        return float((xy - truth).norm(dim=-1)[sample.visible].median() / size)

    # Measured over all frames: 0.014 to 0.020; of the next camera 0.08 to 0.13, frame 0.06 to 0.11.
    assert error(sample.joints2d) < 0.025
    assert error(sample.joints2d.roll(1, 0)) > 0.05
    assert error(later.joints2d) > 0.04


def test_png_images_are_the_same_samples(tmp_path):
    shutil.copytree(MINI, tmp_path / "tree")
    for path in (tmp_path / "tree" / TEST / "hdImgs/00_03").iterdir():
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
        path.unlink()
    (as_jpeg, as_png) = (samples(root, views=[3, 6])[1] for root in (MINI, tmp_path / "tree"))
    assert torch.equal(as_jpeg.images, as_png.images)
    (tmp_path / "tree" / TEST / "hdImgs/00_03/00_03_00000141.png").unlink()
    fails(
        r"1 of 8 images are missing, such as .*00_03_00000141\.png", tmp_path / "tree", views=[3, 6]
    )


def test_joints_that_are_missing(copied):
    folder = copied / TEST / "hdPose3d_stage1_coco19"
    body = to_coco19(make_panoptic(copied / "other", (TEST,))[0, 0]) @ TO_FILES.T
    gone = body.copy()
    gone[[4, 17]] = np.nan  # left elbow and right eye
    write_bodies(folder / "body3DScene_00000002.json", {7: gone})
    no_pelvis = body.copy()
    no_pelvis[2] = np.nan
    write_bodies(folder / "body3DScene_00000003.json", {7: no_pelvis})
    file = folder / "body3DScene_00000004.json"
    write_bodies(file, {7: body})
    tree = json.loads(file.read_text())
    tree["bodies"][0]["joints19"][3::4] = [0.1] * 12 + [0.5] * 7  # twelve hardly seen
    file.write_text(json.dumps(tree))
    sequence = read_sequence(copied, TEST)
    rows, left_out = choose_persons(sequence, None)
    assert sequence.frame[rows].tolist() == [2, 5]
    assert +left_out == {"no pelvis or too few joints": 2}
    index = build_index(data(copied), "test")
    elbow = H36M17.joints.index("left_elbow")
    unknown = np.isnan(index.labels.joints[0]).any(1).nonzero()[0]
    assert unknown.tolist() == sorted([*UNKNOWN, elbow])


def test_older_joint_sets(tmp_path):
    joints = make_panoptic(tmp_path, (TEST,), num_frames=2)
    folder = tmp_path / TEST / "hdPose3d_stage1_coco19"
    for path in folder.iterdir():
        tree = json.loads(path.read_text())
        for body in tree["bodies"]:
            body["joints15"] = body.pop("joints19")[:60]
        path.write_text(json.dumps(tree))
    spine, thorax, head, nose = map(H36M17.joints.index, ("spine", "thorax", "head", "nose"))
    for name, unknown in (
        ("hdPose3d_stage1_coco15", [spine, thorax, head, nose]),  # without ears no base of the neck
        ("hdPose3d_stage1", [spine]),  # mpi15
    ):
        folder = folder.rename(folder.with_name(name))
        labels = build_index(data(tmp_path), "test").labels
        assert np.isnan(labels.joints[0]).any(1).nonzero()[0].tolist() == unknown
        ankle = H36M17.joints.index("right_foot")
        np.testing.assert_allclose(labels.joints[:, ankle], joints[0, :, ankle], atol=0.1)


def test_thinning_and_splits(tmp_path):
    make_panoptic(tmp_path, num_frames=7, cameras=(1, 2))
    for every, frames in ((1, [2, 3, 4, 5, 6, 7, 8]), (3, [2, 5, 8])):
        index = build_index(data(tmp_path, train_every=every), "train")
        assert index.labels.subject_names == (TRAIN,)
        assert index.labels.frame[index.rows].tolist() == frames
    options = data(tmp_path, test_sequences=[TRAIN, TEST])
    run = config.RunConfig(name="x")
    both = open_split(config.Config(run=run, data=options), "test")
    assert both.index.labels.subject_names == (TRAIN, TEST)
    assert both.scene.tolist() == [0] * 7 + [1] * 7


def test_views_that_see_too_little_are_left_out(tmp_path):
    make_panoptic(tmp_path, (TEST,), num_frames=5)
    sequence = read_sequence(tmp_path, TEST)
    aside = sequence._replace(joints=sequence.joints.copy())
    aside.joints[1] += [3000.0, 0, 0]  # out of most images
    shares = inside_shares(sequence), inside_shares(aside.take(np.array([1])))
    assert shares[0].min() > 0.9 and shares[1].mean() < 0.5
    file = tmp_path / TEST / "hdPose3d_stage1_coco19/body3DScene_00000003.json"
    write_bodies(file, {7: aside.joints[1] @ TO_FILES.T})
    dataset = samples(tmp_path)
    assert dataset.index.seen.sum(1).min() < 7
    # Frames with the same views stand together, so that they are pooled.
    frames = dataset.index.labels.frame[dataset.index.rows].tolist()
    assert frames == [2, 4, 5, 6, 3] and dataset.scene.tolist() == [0, 0, 0, 0, 1]
    # Of a video the last frame is read to check it: the last by number.
    assert all(names == sorted(names) for _, _, names in image_folders(dataset.index))


def test_bad_trees(copied):
    scene = copied / TEST
    calibration = scene / f"calibration_{TEST}.json"
    bodies = scene / "hdPose3d_stage1_coco19"
    good = calibration.read_text()
    fails("nowhere is not a folder", copied / "nowhere")
    fails("holds no sequence", bodies)
    fails(
        r"data\.test_sequences: .* has no a, b; it holds 171026", copied, test_sequences=["a", "b"]
    )

    calibration.unlink()
    fails(rf"calibration_{TEST}\.json: cannot be read: No such file or directory; download", copied)
    calibration.write_text(good[:2000])
    fails(rf"calibration_{TEST}\.json: truncated or no JSON", copied)
    calibration.write_text(good.replace('"distCoef"', '"dist"'))
    fails("not a Panoptic calibration: KeyError: 'distCoef'", copied)
    calibration.write_text(good.replace('"hd"', '"vga"'))
    fails("not a Panoptic calibration: KeyError|no camera of type hd", copied)
    write_calibration(calibration, scale=0.01)
    fails(r"cameras from their middle of 3\.\d cm .* t of the cameras must be in cm", copied)
    calibration.write_text(good)

    file = bodies / "body3DScene_00000002.json"
    whole = file.read_text()
    file.write_text(whole[:300])
    fails(r"body3DScene_00000002\.json: truncated or no JSON", copied)
    file.write_text(whole.replace("joints19", "joints15"))
    fails(r"body3DScene_00000002\.json: not a file of bodies: KeyError: 'joints19'", copied)
    file.write_text(whole)

    texts = {path: path.read_text() for path in bodies.iterdir()}
    for path, text in texts.items():
        tree = json.loads(text)
        for body in tree["bodies"]:
            table = np.array(body["joints19"]).reshape(19, 4)
            table[:, :3] /= 100  # metres
            body["joints19"] = table.ravel().tolist()
        path.write_text(json.dumps(tree))
    fails(r"thighs of 0\.\d+ cm .* joints must be in cm", copied)
    for path in texts:
        path.write_text(json.dumps({"bodies": []}))
    fails(r"nobody in any of its 4 frames \(bodies is empty\)", copied)
    for path, text in texts.items():
        path.write_text(text)

    images = scene / "hdImgs/00_03"
    (images / "00_03_00000004.jpg").unlink()
    fails(r"1 of 21 images are missing, such as .*00_03_00000004\.jpg; .*prepare_panoptic", copied)
    shutil.rmtree(images)
    fails(
        "171204_pose5: camera 00_03 has no images; expected the folder hdImgs", copied, views=[3, 4]
    )
    assert len(build_index(data(copied), "test").cameras) == 6
    shutil.rmtree(scene / "hdImgs")
    fails("images are missing, such as .*hdImgs", copied)
    shutil.rmtree(bodies)
    fails("no bodies; expected the folder hdPose3d_stage1_coco19", copied)


def test_images_of_another_size(copied):
    path = copied / TEST / "hdImgs/00_02/00_02_00000004.jpg"
    whole = cv2.imread(str(path))
    cv2.imwrite(str(path), cv2.resize(whole, (250, 250)))
    with pytest.raises(UserError, match=r"00000004\.jpg: .* but its camera is calibrated for 256"):
        samples(copied)[1]
    cv2.imwrite(str(path), whole)
    assert samples(copied, image_size=32)[1].images.isfinite().all()  # read at half its size


def test_short_and_damaged_videos(tmp_path, capsys):
    make_panoptic(tmp_path, (TEST,), num_frames=4, cameras=(1, 2), videos=True)
    video = tmp_path / TEST / "hdVideos/hd_00_02.mp4"
    shutil.copy(
        tmp_path / TEST / "hdPose3d_stage1_coco19/body3DScene_00000002.json",
        tmp_path / TEST / "hdPose3d_stage1_coco19/body3DScene_00000009.json",
    )
    fails(r"2 of 10 images are missing, such as .*hd_00_01\.mp4/frame 9", tmp_path)
    (tmp_path / TEST / "hdPose3d_stage1_coco19/body3DScene_00000009.json").unlink()
    video.write_bytes(b"rubbish")
    fails(r"4 of 8 images are missing, such as .*hd_00_02\.mp4/frame 2", tmp_path)
    assert prepare(["check", str(tmp_path), "--read", "--out", str(tmp_path / "out")]) == 1
    assert "4 problems" in capsys.readouterr().out


def test_check_reports_and_draws(capsys, tmp_path):
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 700_000
    assert prepare(["check", str(MINI), "--read", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{TEST}: 6 frames, 2 with several people, 0 with nobody; 8 bodies of 2 ids" in text
    assert "not here  171026_pose2, 171026_pose3, 171204_pose1" in text
    assert "31 HD; images of 15: 00_01, 00_02" in text and "100 % of the bodies" in text
    assert "complete" in text
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 3
    assert all(cv2.imread(str(path)).std() > 10 for path in pictures)


def test_check_names_every_broken_sequence(tmp_path, capsys):
    shutil.copytree(MINI, tmp_path / "tree")
    for name in "a", "b":  # an extraction that was forgotten, and a download
        shutil.copytree(MINI / TEST, tmp_path / "tree" / name)
    shutil.rmtree(tmp_path / "tree/a/hdPose3d_stage1_coco19")
    (tmp_path / f"tree/a/calibration_{TEST}.json").rename(tmp_path / "tree/a/calibration_a.json")
    assert prepare(["check", str(tmp_path / "tree"), "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert "a: cannot be used: " in text and "no bodies; expected the folder hdPose3d" in text
    assert "b: cannot be used: " in text and "calibration_b.json: cannot be read: No such" in text
    assert f"{TEST}: 6 frames" in text and "2 of 4 sequences cannot be used" in text


def test_real_files(capsys, tmp_path):
    root = SHARED / "panoptic"
    if not root.is_dir():
        pytest.skip("needs real files of CMU Panoptic")
    assert len(sequence_names(root)) == 2
    for name in sequence_names(root):
        sequence = read_sequence(root, name)
        check_units(sequence)
        assert sequence.camera_names == CAMERAS and len(sequence.frame) == 6
        shares = inside_shares(sequence)
        # Measured: 88 % mean, 66 and 68 % in the least camera.
        assert 0.8 < shares.mean() < 0.95 and shares.min() > 0.6
        assert upright(sequence) == 1
        bones = bone_lengths(sequence)
        ranges = {"thigh": (350, 480), "shank": (330, 470)}
        ranges |= {"upper arm": (230, 330), "forearm": (200, 290)}
        for bone, (low, high) in ranges.items():
            assert low < bones[bone] < high
        # The control: metres, and another world.
        with pytest.raises(UserError, match="must be in cm"):
            check_units(sequence._replace(joints=sequence.joints / 100))
        lying = sequence._replace(joints=sequence.joints[..., [0, 2, 1]])
        assert upright(lying) < 1 and inside_shares(lying).mean() < 0.5
    assert prepare(["check", str(root), "--person", "0", "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "31 HD; images of 0" in text and "120 problems" in text
