"""The benchmark of detectors on rigs with exact truth: windows, scores and figures."""

import functools

import numpy as np
import pytest
import torch
from benchmark.commands import main
from benchmark.detectors.cases import windows
from benchmark.detectors.command import HEADINGS, summarise
from benchmark.detectors.scores import score
from detector_errors.clips import Clips, Detected, simulate, static_cameras
from h36m_fixture import make_tiny_h36m

from ptri.config import PosteriorConfig
from ptri.models.weights import find_model
from ptri.people.bodies import sample_clips
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.people.rigs import FAMILY_NAMES, sample_rigs
from ptri.structures import Keypoints

OPTIONS = PosteriorConfig(num_samples=64)


@functools.cache
def found(joint_set: str, noise: float = 0.004) -> Detected:
    """Two clips of 6 frames before three cameras, as a detector of some joint set sees them."""
    draws = Draws.from_seeds([(3, 0), (3, 1)])
    joints = sample_clips(draws, 6, 5.0, ("gesture",)).joints3d
    family = torch.full((2,), FAMILY_NAMES.index("ring"))
    rig = sample_rigs(draws, family, joints, 3, 0.0).cameras
    R = rig.R @ rig.R[:, :1].mT
    t = rig.t - (R @ rig.t[:, :1, :, None])[..., 0]
    joints = joints @ rig.R[:, :1].mT + rig.t[:, :1, None]
    shape = (2, 6, 3, 17)
    blank = Keypoints(torch.zeros(*shape, 2), torch.eye(2).expand(*shape, 2, 2), torch.ones(shape))
    clips = Clips(joints, static_cameras(R, t), blank, torch.ones(shape).bool(), 5.0, joint_set)
    quiet = dict.fromkeys(
        ("body_swap_rate", "limb_swap_rate", "outlier_rate", "definition_mm", "view_bias"), 0.0
    )
    clips = clips._replace(keypoints=simulate(clips, ErrorModel(noise=noise, **quiet), 0).keypoints)
    return Detected(clips, clips.keypoints, joints, clips.inside)


def test_windows_do_not_overlap():
    assert [w.frames for w in windows(1, 27, 27)] == [slice(0, 27)]
    assert [w.frames for w in windows(1, 27, 10)] == [slice(0, 10), slice(17, 27)]
    assert [w.frames.start for w in windows(1, 27, 1)] == [0, 13, 26]
    assert [w.clip for w in windows(2, 27, 10)] == [0, 0, 1, 1]


def test_a_rig_is_scored_against_its_truth():
    model, given = find_model(None, torch.device("cpu")), found("h36m17")
    window = windows(2, 6, 6)[0]
    values = score(model, given, window, OPTIONS, 0)
    assert values["angle"].shape == (3,) and values["rotation90"].shape == (2,)
    assert values["angle"].max() < 3  # deg; measured 0.6
    assert values["mpjpe"] == values["answered"]  # all 17 joints are given
    assert 1 < values["triangulated"] < 40 and values["calibrated"] < 60
    turned = given.clips._replace(joints=given.clips.joints + torch.tensor([0.0, 0, 500.0]))
    off = score(model, given._replace(clips=turned), window, OPTIONS, 0)
    assert off["mpjpe"] == pytest.approx(values["mpjpe"], rel=1e-3)  # about the root
    moved = given.clips.cameras.R.clone()
    moved[:, 1] = moved[:, 1] @ torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    cameras = given.clips.cameras._replace(R=moved)  # the control: another truth
    off = score(
        model, given._replace(clips=given.clips._replace(cameras=cameras)), window, OPTIONS, 0
    )
    assert off["angle"].max() > 80 and off["triangulated"] > 2 * values["triangulated"]
    assert off["rotation90"][0] == 0


def test_figures_pool_rigs():
    rng = np.random.default_rng(0)
    rigs = [
        {
            "angle": np.array([1.0, 2.0, 30.0]),
            "rotation50": np.array([0.0, 1.0]),
            "answered": np.array([40.0 + size]),
            "triangulated": np.array([80.0 + 2 * size]),
        }
        for size in rng.normal(size=12)
    ]
    figures = summarise(rigs)
    assert set(figures) <= set(HEADINGS)
    assert figures["median"].value == 2.0 and figures["rigs"].value == 12
    assert figures["failed"].value == pytest.approx(1 / 3)
    assert figures["rotation50"].value == 0.5
    assert figures["ratio"].value == pytest.approx(0.5)


@pytest.mark.slow
def test_the_command_in_miniature(tmp_path, capsys):
    """On dots instead of people: every table is there, and detections are kept."""
    root, out = tmp_path / "dots", tmp_path / "out"
    make_tiny_h36m(root, subjects=("S1",), actions=("Walking-1",), num_frames=4)
    words = ["detectors", str(root), "--detectors", "ours", "--frames", "1", "4", "--most", "1"]
    words += ["--unknown", "--frame-worth", "0.5", "--out", str(out), "--set"]
    words += ["posterior.num_samples=64"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for title in ("ours, dots", "ours, dots, errors unknown", "ours, dots, a frame worth 0.5"):
        assert f"{title}\n" in text
    assert text.count("T = 4") == 4  # three tables, and the heading of the target
    kept = out / "detected_dots_ours_4.pt"
    before = kept.stat().st_mtime_ns
    assert main(words) == 0 and kept.stat().st_mtime_ns == before
    assert main([*words[:1], str(tmp_path / "nowhere"), *words[2:]]) == 2
    assert "nowhere" in capsys.readouterr().err
