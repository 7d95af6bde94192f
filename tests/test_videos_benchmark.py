"""The benchmark of videos: rendered rigs become recordings, and what is said of a solved one."""

import numpy as np
import pytest
from benchmark.commands import main
from benchmark.videos import command
from benchmark.videos.rendered import write_recordings
from benchmark.videos.scores import bone_spread, summary, table

from ptri import config
from ptri.data.labels import labels_path, read_labels
from ptri.errors import UserError
from ptri.recordings.intrinsics import read_cameras
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.videos import open_video_set
from ptri.skeleton import COCO17


def test_a_clip_becomes_a_recording_with_its_cameras(tmp_path):
    (folder,) = write_recordings("data/demo", tmp_path, 1)
    labels = read_labels(labels_path("data/demo"))
    subject, action = folder.name.split("_", 1)
    s, a = labels.subject_names.index(subject), labels.action_names.index(action)
    for c, camera in enumerate(read_cameras(folder / "calibration.json")):
        assert camera.name == labels.camera_names[c]
        for name in ("K", "R", "t"):
            np.testing.assert_allclose(getattr(camera, name), getattr(labels, name)[s, c])
    frames = labels.frame[(labels.subject == s) & (labels.action == a)]
    settings = ["run.name=test", "data.kind=videos", f"data.root={folder}"]
    opened = open_video_set(config.load(None, settings))
    assert [video.num_frames for video in opened.videos] == [len(frames)] * 4
    assert opened.videos[0].fps == pytest.approx(50 / np.diff(frames).min(), rel=1e-3)
    assert write_recordings("data/demo", tmp_path, 1) == [folder]  # and is not written again


def test_bones_that_keep_their_length_do_not_vary():
    generator = np.random.default_rng(0)
    joints = np.repeat(generator.normal(size=(1, 17, 3)), 40, 0)
    recording = Recording((), np.arange(40), np.zeros((40, 0, 17, 2)), None, COCO17, None)
    assert bone_spread(recording, joints) == 0
    stretched = joints * generator.normal(1, 0.05, (40, 1, 1))
    stretched[3] *= 20  # a single wild frame does not count
    assert 0.03 < bone_spread(recording, stretched) < 0.07
    assert np.isnan(bone_spread(recording, np.full_like(joints, np.nan)))


def test_a_recording_that_failed_stays_in_the_table():
    good = {
        **{"accepted": True, "verdict": "accepted", "rotation_worst_deg": 12.0},
        **{"rotation_median_deg": 1.0, "direction_median_deg": None, "views_in_region90": 2},
        **{"views": 3, "reprojection_px": 4.0, "reprojection_reference_px": None},
        **{"bone_spread": 0.05, "seconds_2d_per_frame": None, "seconds_rig": 1.0},
    }
    results = {"a, x": good, "b, x": {"error": "nobody was found"}}
    assert "nobody was found" in table(results) and "2 of 3" in table(results)
    line = summary(results, dict.fromkeys(results, "x")).splitlines()[-1]
    assert "1 of 2" in line and "1 of 1" in line  # accepted; the failure was accepted


def test_a_recording_that_cannot_be_solved_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def too_little(*_):
        raise UserError("too little was seen")

    monkeypatch.setattr(command.recordings, "observe", lambda _: (None, None, None))
    monkeypatch.setattr(command.recordings, "process", too_little)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--detector", "movenet"]
    assert main(["videos", *words, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("too little was seen") == 4  # as it comes, and the table


@pytest.mark.parametrize("name", ["videos", "detectors"])
def test_folders_of_one_name_are_refused(name, tmp_path, capsys):
    assert main([name, str(tmp_path / "a/walk"), str(tmp_path / "b/walk")]) == 2
    assert "two folders are called 'walk'" in capsys.readouterr().err
