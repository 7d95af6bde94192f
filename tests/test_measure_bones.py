"""scripts/measure_bones.py, and the setting it prints."""

import importlib.util
from pathlib import Path

import h5py
import pytest
import torch
from rigs_fixture import gaussian_scene

from ptri import config
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.models.weights import build_model
from ptri.posterior.body import load_body_prior
from ptri.skeleton import H36M17
from ptri.structures import Cameras

PATH = Path(__file__).parents[1] / "scripts/measure_bones.py"
SPEC = importlib.util.spec_from_file_location("measure_bones", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

NOSE, HEAD = (H36M17.joints.index(name) for name in ("nose", "head"))
BONE = H36M17.bones.index((HEAD, NOSE))


def written(path, squeeze=1.0):
    """A file as infer3d.py writes it, whose network draws the bone from nose to head shorter."""
    keypoints, K, cameras, joints = gaussian_scene(batch=6, missing=0.0)
    drawn = joints.clone()
    drawn[:, :, HEAD] = torch.lerp(joints[:, :, NOSE], joints[:, :, HEAD], squeeze)
    stacked = Cameras(K, cameras.R[:, None], cameras.t[:, None])
    xy = project(drawn, stacked)[:, 0]
    with h5py.File(path, "w") as file:
        file["keypoints/xy"] = xy
        file["keypoints/covariance"] = keypoints.covariance[:, 0]
        file["keypoints/confidence"] = torch.ones_like(xy[..., 0])
        file["cameras/K"], file["cameras/R"], file["cameras/t"] = K[:, 0], cameras.R, cameras.t
        file["joints3d_true"] = joints[:, 0]
    return path


@pytest.mark.parametrize("squeeze", [1.0, 0.8])
def test_drawn_lengths_are_measured(tmp_path, squeeze):
    expected = torch.ones(16, dtype=torch.float64)
    expected[BONE] = squeeze
    found = script.measure(written(tmp_path / "predictions.h5", squeeze))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_what_is_printed_is_a_setting(tmp_path, capsys):
    assert script.main([str(written(tmp_path / "predictions.h5", 0.8))]) == 0
    setting = capsys.readouterr().out.splitlines()[-1].replace(": ", "=", 1)
    options = config.load(None, ["run.name=test", setting])
    model = build_model(options, with_images=False)
    mean = model.body_prior(17, torch.zeros(1).double()).mean
    expected = load_body_prior().mean
    expected[BONE] += torch.log(torch.tensor(0.8))
    torch.testing.assert_close(mean, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("last", [[], [0.0], [-1.0], [float("inf")], [float("nan")], [1.0, 1.0]])
def test_wrong_ratios_are_refused(last):
    """By the configuration, before anything is solved, and by the prior itself."""
    ratio = [1.0] * 15 + last
    with pytest.raises(UserError, match="bone_ratio: expected 16 positive"):
        load_body_prior(ratio=ratio)
    with pytest.raises(UserError, match="bone_ratio: expected 16 positive"):
        config.replace(config.load(None, ["run.name=test"]), posterior__bone_ratio=ratio)
    with pytest.raises(UserError, match="bone_ratio: expected 16 positive"):
        config.load(None, ["run.name=test", "posterior.bone_ratio=[1.0, 0.9]"])


def test_not_a_run(tmp_path, capsys):
    (tmp_path / "other.h5").write_text("nothing")
    assert script.main([str(tmp_path / "other.h5")]) == 2
    assert "predictions.h5 of an infer3d.py run" in capsys.readouterr().err
