"""Which files the 3D model's weights come from, and what comes with them."""

from pathlib import Path

import pytest
import torch
from rigs_fixture import nothing_seen

from ptri import checkpoint, config
from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.evaluation.evaluate import load_model
from ptri.models.mobileone import merge_batchnorm
from ptri.models.weights import (
    build_model,
    find_model,
    holds_2d,
    model_settings,
    read_detector,
    read_network2d,
    write_detector,
)
from ptri.posterior.body import load_body_prior
from ptri.rig.detector import body_prior
from ptri.structures import Detector
from ptri.training.task3d import RigTask

SHIPPED = "checkpoints/ptri_2d_s0.pt"
KNOWN = Detector((0.9,) * 16, (1.5,) * 17, 0.5)


def settings(**init):
    sizes = "lifter_width: 16, lifter_blocks: 1, fusion_width: 8, fusion_layers: 1"
    sizes = f"model.sizes={{{sizes}, head_channels: 8}}"
    files = [f"init.{name}={path}" for name, path in init.items()]
    return config.load(None, ["run.name=test", "run.device=cpu", sizes, *files])


def detected(network2d, image):
    with torch.no_grad():
        return network2d.eval()(image).logits


def test_a_whole_model_needs_no_2d_file_and_lifter_and_fusion_alone_do(tmp_path):
    torch.manual_seed(0)
    whole, other = build_model(settings()), build_model(settings())
    image = torch.rand(1, 3, 64, 64)
    checkpoint.save_weights(tmp_path / "whole.pt", whole.state_dict(), {})
    checkpoint.save_weights(tmp_path / "other_2d.pt", other.network2d.state_dict(), {})
    state = whole.state_dict()
    parts = {name: value for name, value in state.items() if not name.startswith("network2d.")}
    checkpoint.save_weights(tmp_path / "parts.pt", parts, {})
    assert holds_2d(tmp_path / "whole.pt") and not holds_2d(tmp_path / "parts.pt")

    loaded = load_model(settings(checkpoint_3d=tmp_path / "whole.pt"), images=True)
    ours, theirs = (detected(merge_batchnorm(model.network2d), image) for model in (whole, other))
    assert (detected(loaded.network2d, image) - ours).abs().max() < 0.1 * ours.std()  # fp16 file
    assert (theirs - ours).abs().max() > ours.std()  # the control
    named = {"checkpoint_3d": tmp_path / "whole.pt", "checkpoint_2d": tmp_path / "other_2d.pt"}
    loaded = load_model(settings(**named), images=True)
    assert (detected(loaded.network2d, image) - theirs).abs().max() < 0.1 * theirs.std()

    load_model(settings(checkpoint_3d=tmp_path / "parts.pt"), images=False)
    with pytest.raises(UserError, match=r"init\.checkpoint_2d: not set, and .*parts\.pt"):
        load_model(settings(checkpoint_3d=tmp_path / "parts.pt"), images=True)
    with pytest.raises(UserError, match=r"init\.checkpoint_3d: not set"):
        load_model(settings(), images=False)


def small_weights(folder):
    """Files of a 2D network of which KNOWN is known, and of a whole model of which nothing is."""
    model = build_model(settings())
    files = {"checkpoint_2d": folder / "network.pt", "checkpoint_3d": folder / "whole.pt"}
    checkpoint.save_weights(files["checkpoint_2d"], model.network2d.state_dict(), {"epoch": 1})
    checkpoint.save_weights(files["checkpoint_3d"], model.state_dict(), {})
    write_detector(files["checkpoint_2d"], KNOWN)
    return files


def test_nothing_of_the_shipped_detector_is_left_with_other_weights(tmp_path):
    weights, meta = checkpoint.load_weights(SHIPPED)
    meta.pop("detector")
    checkpoint.save_weights(tmp_path / "mine.pt", weights, meta)
    assert read_detector(SHIPPED).frame_worth == 0.2  # the control
    for name in ("demo", "demo_3d", "videos"):
        mine = config.load(
            f"configs/{name}.yaml", [f"init.checkpoint_2d={tmp_path / 'mine.pt'}", "data.root=x"]
        )
        model = build_model(mine, with_images=False)
        assert model.detector == Detector()
        prior = load_body_prior(definition=mine.posterior.bone_definition)
        drawn = body_prior(mine.posterior, model.detector, nothing_seen()).mean
        assert torch.equal(drawn, prior.mean)


def test_what_is_known_of_a_detector_is_used(tmp_path):
    files = small_weights(tmp_path)
    model = build_model(settings(checkpoint_2d=files["checkpoint_2d"]))
    assert model.detector == KNOWN
    plain = load_body_prior().mean
    drawn = body_prior(PosteriorConfig(), model.detector, nothing_seen()).mean
    torch.testing.assert_close(drawn, plain + torch.tensor(0.9).log())


def test_whose_detector_counts(tmp_path):
    files = small_weights(tmp_path)
    only_2d, whole = ({name: path} for name, path in files.items())

    def known(kind, images, init):
        made = config.replace(settings(**init), data__kind=kind)
        return build_model(made, with_images=images).detector

    assert known("generated", False, only_2d) == KNOWN  # keypoints that imitate it
    assert known("recording", False, only_2d) == Detector()  # somebody else's keypoints
    assert known("h36m", True, whole) == Detector()
    assert known("h36m", True, files) == KNOWN
    write_detector(files["checkpoint_3d"], KNOWN)
    assert known("h36m", True, whole) == KNOWN
    assert known("h36m", False, whole) == Detector()  # as for `ptri.estimate_rig`


def test_training_a_detector_on_forgets_what_was_known_of_it(tmp_path):
    made = settings(checkpoint_2d=small_weights(tmp_path)["checkpoint_2d"])
    frozen = RigTask(config.replace(made, train__freeze_2d=True)).build_model()
    trained = RigTask(made).build_model()
    assert frozen.detector == KNOWN and trained.detector == Detector()


def test_only_the_metadata_are_written(tmp_path):
    path = small_weights(tmp_path)["checkpoint_2d"]
    before, meta = checkpoint.load_weights(path)
    write_detector(path, Detector(frame_worth=0.25))
    after, changed = checkpoint.load_weights(path)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert changed["epoch"] == meta["epoch"] == 1
    assert read_detector(path) == Detector(frame_worth=0.25)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("bone_ratio", [1.0, 0.9], "expected 16 positive"),
        ("bone_ratio", [1.0] * 15 + [float("nan")], "expected 16 positive"),
        ("overstated", "wide", "expected 17 positive"),
        ("frame_worth", 1.5, "expected a number above 0"),
    ],
)
def test_impossible_numbers_of_a_detector_are_refused(tmp_path, name, value, message):
    path = small_weights(tmp_path)["checkpoint_2d"]
    with pytest.raises(UserError, match=f"{name}: {message}"):
        write_detector(path, Detector(**{name: value}))
    checkpoint.change_meta(path, "detector", {name: value})
    with pytest.raises(UserError, match=f"network.pt: meta: detector.{name}: {message}"):
        build_model(settings(checkpoint_2d=path))
    checkpoint.change_meta(path, "detector", {"worth": 1.0})
    with pytest.raises(UserError, match="expected bone_ratio, overstated, frame_worth"):
        build_model(settings(checkpoint_2d=path))


def test_weights_of_earlier_versions_are_read():
    """Their metadata hold settings that are gone or stand elsewhere now."""
    network, size = read_network2d(SHIPPED)
    assert size == 256 and network.head.context is not None
    for path in Path("checkpoints/ablations").glob("*.pt"):
        made = model_settings(path, checkpoint.load_weights(path)[1])
        assert made["head"] == path.stem and "freeze_norm" not in made
        config.from_dicts([("", {"run": {"name": "x"}, "model": made})])
        if path.stem == "fixed_views_mlp":
            assert made["sizes"]["fixed_width"] == 448
    assert model_settings("x", {"config": {"model": {"sizes": {"context": False}}}}) == {
        "sizes": {"context": False}
    }
    with pytest.raises(UserError, match=r"old\.pt: made with model\.heatmap_window of 3"):
        model_settings("old.pt", {"model": {"heatmap_window": 3}})


def test_a_file_of_weights_that_was_replaced_is_read_again(tmp_path):
    path, shipped = tmp_path / "model.pt", "checkpoints/ptri_3d.pt"
    weights, meta = checkpoint.load_weights(shipped)
    checkpoint.save_weights(path, weights, meta)
    cpu = torch.device("cpu")
    first = find_model(path, cpu)
    assert find_model(path, cpu) is first and find_model(str(path), cpu) is first
    checkpoint.save_weights(path, {name: 0 * value for name, value in weights.items()}, meta)
    second = find_model(path, cpu)
    assert second is not first
    assert not second.lifter.output[1].weight.any() and first.lifter.output[1].weight.any()
    path.unlink()
    with pytest.raises(UserError, match=r"model\.pt: no such checkpoint"):
        find_model(path, cpu)
