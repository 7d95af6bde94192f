"""Videos: opened, checked against the camera file, read in step."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from recording_fixture import edit_cameras
from videos_fixture import make_grey, settings, write_grey, write_timed, write_video

from ptri.errors import UserError
from ptri.recordings import cache, videos
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.video_files import videos_by_camera


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return make_grey(tmp_path_factory.mktemp("grey"))


@pytest.fixture
def plain(grey, tmp_path):
    return Path(shutil.copytree(grey, tmp_path / "plain"))


BROKEN = {
    "no video of camera back": lambda folder: (folder / "back.avi").unlink(),
    r"different lengths \(left.avi 3, front.avi 3, right.avi 2": lambda folder: write_grey(
        folder / "right.avi", 2
    ),
    "left.avi: no frame that OpenCV can read": lambda folder: (folder / "left.avi").write_text(
        "no"
    ),
    "camera 'front' has size and K for 480 x 480": lambda folder: write_grey(
        folder / "front.avi", size=400
    ),
    "frame rates differ too much": lambda folder: write_grey(folder / "back.avi", fps=120.0),
    r"back.avi: no frame that OpenCV can read": lambda folder: write_video(
        folder / "back.avi", [], size=(480, 480)
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_bad_videos(plain, message):
    BROKEN[message](plain / "videos")
    with pytest.raises(UserError, match=message):
        videos.open_video_set(settings(plain))
    if "lengths" in message:  # they may differ beyond the last frame
        assert videos.open_video_set(settings(plain, "recording.last_frame=1")).frames == [0, 1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recording.last_frame=7", r"has 3 frames \(0 to 2\)"),
        ("recording.first_frame=3", "no frame from 3 to 2"),
        ("recording.boxes=nowhere", "nowhere is no folder"),
        ("recording.person=box", "recording.person: box, but there is no"),
        ("recording.videos=elsewhere", "no video of camera left, front"),
    ],
)
def test_bad_settings(grey, setting, message):
    with pytest.raises(UserError, match=message):
        videos.open_video_set(settings(grey, setting))


def test_a_video_shorter_than_its_header(grey):
    long = [one._replace(num_frames=9) for one in videos.open_video_set(settings(grey)).videos]
    with pytest.raises(UserError, match=r"left.avi: frame 3 of 9 .* damaged or shorter than its"):
        list(videos.read_in_step(long, range(9)))
    assert len(list(videos.read_in_step(long, range(5)))) == 3  # as cut videos end: no matter
    with pytest.raises(UserError, match=r"left.avi: frame 4 of 9 cannot be read"):
        list(videos.read_in_step(long, [4]))  # nothing is left


def times_seen(paths, frames):
    """The moments (s) that frames of videos show, as their grey tells; NaN: no picture."""
    rates = [cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) for path in paths]
    opened = [videos.Video(path, 99, fps) for path, fps in zip(paths, rates)]
    grey = [
        [np.nan if image is None else image.mean() for image in images]
        for images in videos.read_in_step(opened, frames)
    ]
    return (np.array(grey) - grey[0]) / 100  # all begin at 0 s


def test_videos_of_other_rates_show_the_same_moments(tmp_path):
    """By timestamps: 20 and 60 a second, and a phone's whose clock is never even."""
    rng = np.random.default_rng(0)
    even, fast = np.arange(40) / 20, np.arange(120) / 60
    phone = np.cumsum(rng.uniform(0.02, 0.05, 60))
    phone -= phone[0]
    phone = np.delete(phone, [20, 21, 22, 23, 24, 25])  # for a while it was too busy to film
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path, times, fps in zip(paths, (even, fast, phone), (20, 60, 28)):
        write_timed(path, times, fps)
    seen = times_seen(paths, range(38))
    np.testing.assert_allclose(seen[:, 0], even[:38], atol=0.011)  # a level of grey
    np.testing.assert_allclose(seen[:, 1], even[:38], atol=0.011)
    nearest = np.abs(phone[:, None] - even[:38]).min(0)
    error = np.abs(seen[:, 2] - even[:38])
    assert np.nanmax(error) < 0.035 and np.nanmedian(error) < 0.02
    gap = np.isnan(seen[:, 2])
    assert gap.any() and (nearest[gap] > 0.02).all() and gap[nearest > 0.04].all()
    # The control: by their numbers alone, the moments drift apart.
    assert abs(phone[37] - even[37]) > 0.3


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("cut.avi", "FFV1", r"cut.avi: frame \d+ of 30 cannot be read; the file is damaged or"),
        ("cut.mp4", "mp4v", r"cut.mp4: no frame that OpenCV can read; record it again"),
    ],
)
def test_a_file_that_was_cut_off(tmp_path, name, codec, message):
    """As of a copy that was broken off: an .avi is read as far as it goes, an .mp4 not at all."""
    path = tmp_path / "videos" / name
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 256, (30, 64, 64, 3), np.uint8), 25.0, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    camera = CameraEntry("cut", (64, 64), np.eye(3), np.zeros(5), None, None)
    with pytest.raises(UserError, match=message):
        opened = videos.open_videos([camera], tmp_path, "auto")
        list(videos.read_in_step(opened, range(opened[0].num_frames)))


def test_videos_are_found_by_camera(plain):
    """By its name, else by what the name begins with."""
    (plain / "videos/left.avi").rename(plain / "videos/left-take2.avi")
    paths = videos_by_camera(["left", "back", "other"], plain)
    assert set(paths) == {"left", "back"}
    assert [paths[name].name for name in ("left", "back")] == ["left-take2.avi", "back.avi"]
    assert abs(videos.read_frame(paths["left"], 1).mean() - 90) < 10
    assert videos.read_frame(paths["left"], 7) is None
    (plain / "videos/back.avi").rename(plain / "videos/back_door.avi")
    edit_cameras(plain, lambda cameras: cameras[0].update(name="back_door"))
    with pytest.raises(UserError, match="only video for cameras back_door, back"):
        videos.open_video_set(settings(plain))


def test_no_camera_takes_another_one_s_video(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("cam1_walk.mp4", "cam10_walk.mp4", "cam20.mp4", "cam3-a.mp4", "cam3-b.mp4"):
        (tmp_path / "videos" / name).touch()
    # cam2 has none, and of cam3's two nobody knows which.
    found = videos_by_camera(["cam1", "cam2", "cam3", "cam10"], tmp_path)
    names = {name: path.name for name, path in found.items()}
    assert names == {"cam1": "cam1_walk.mp4", "cam10": "cam10_walk.mp4"}


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
        CameraEntry("left", size, np.eye(3), np.zeros(5), None, None)
        for size in ((96, 48), (48, 96))
    )
    assert videos.open_videos([upright], tmp_path, "auto")[0].num_frames == 4
    with pytest.raises(UserError, match="48 x 96 px as shown, rotated by 90 deg by its metadata"):
        videos.open_videos([lying], tmp_path, "auto")


def test_fingerprints_tell_files_apart(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(1000))
    first = cache.fingerprint(path)
    assert first == cache.fingerprint(path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cache.fingerprint(path) != first
