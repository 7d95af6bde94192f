"""Which files the 3D model's weights come from."""

import pytest
import torch

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.evaluation.evaluate import load_model
from ptri.models.mobileone import fuse
from ptri.models.weights import build_model, holds_2d


def settings(**init):
    sizes = ["model.lifter_width=16", "model.lifter_blocks=1", "model.fusion_width=8"]
    sizes += ["model.fusion_layers=1", "model.head_channels=8", "run.device=cpu"]
    files = [f"init.{name}={path}" for name, path in init.items()]
    return config.load(None, ["run.name=test", *sizes, *files])


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
    ours, theirs = (detected(fuse(model.network2d), image) for model in (whole, other))
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
