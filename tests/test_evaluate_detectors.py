"""Data sets evaluated by a detector that is not ours: one word of the configuration."""

import h5py
import numpy as np
import pytest

from ptri import config
from ptri.data.multiview import open_split
from ptri.detectors.build import THUNDER
from ptri.errors import UserError
from ptri.evaluation.evaluate import evaluate, load_model
from ptri.models.weights import read_detector
from ptri.skeleton import H36M17


def settings(out, *extra):
    common = ["run.name=x", "data.test_subjects=[9]", "data.workers=0", "detector.name=movenet"]
    common += ["init.checkpoint_3d=checkpoints/ptri_3d.pt", f"evaluate.out={out}"]
    return config.load(None, [*common, "evaluate.pictures=1", *extra])


@pytest.mark.parametrize(
    "setting, message",
    [
        ("data.image_size=384", "image_size: 384; movenet takes crops of 256 px"),
        ("data.crop_scale=1.25", "crop_scale: 1.25; movenet takes crops of 1 times the person's"),
    ],
)
def test_a_detector_takes_crops_of_its_own_size(setting, message, tmp_path):
    options = settings(tmp_path, setting)
    with pytest.raises(UserError, match=message):
        evaluate(load_model(options, True), open_split(options, "test"), options, tmp_path / "x")


@pytest.mark.slow
def test_movenet_on_a_data_set(tmp_path):
    options = settings(tmp_path, "data.test_every=100")
    model = load_model(options, True)
    assert model.network2d is None  # nothing of ours is loaded
    figures, _ = evaluate(model, open_split(options, "test"), options, tmp_path / "x")
    assert model.detector == read_detector(THUNDER)  # what is known of it counts
    assert figures["mpjpe"] < 120 and figures["pooled/mpjpe"] < 100
    assert figures["x2d/l2"] < 12  # px of 256
    assert not list((tmp_path / "x/pictures").glob("*_heatmaps.png"))
    with h5py.File(tmp_path / "x/predictions.h5") as file:
        unseen = np.isnan(file["keypoints/xy"][:]).any(-1).all((0, 1))
        assert [H36M17.joints[j] for j in np.flatnonzero(unseen)] == ["spine", "head"]
        assert np.isfinite(file["single/joints3d"][:]).all()
