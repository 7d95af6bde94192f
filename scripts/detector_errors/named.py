"""Detectors by name, as `detector.name` says it, with weights of choice."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from detector_errors.multipose import Multipose
from ptri import config as configuration
from ptri.detectors.build import build_detector
from ptri.detectors.movenet import THUNDER
from ptri.models.mobileone import merge_batchnorm
from ptri.models.pose_model import PoseModel
from ptri.models.weights import read_detector, read_network2d

WEIGHTS = {"ours": Path("checkpoints/ptri_2d_s0.pt"), "movenet": THUNDER}


def named_detector(
    name: str, weights: str | Path | None = None, size: int = 0, flip: bool = False
) -> nn.Module:
    """A `ptri.detectors.protocol.PoseDetector`, ready for inference on the CPU.

    Args:
        name: of `ptri.detectors.build`, or "multipose". weights: None: the shipped ones.
        size: px of the crops of our network; 0: what it was trained at.
        flip: our network averages the mirrored image in.

    Raises:
        UserError: no such detector; weights that are missing, corrupt or of another network.
    """
    if name == "multipose":
        return Multipose()
    path = str(weights or WEIGHTS.get(name) or "") or None
    layers = {"run": {"name": "detector", "device": "cpu"}, "detector": {"name": name}}
    if name != "ours":
        layers["detector"]["weights"] = path
        return build_detector(configuration.from_dicts([("command line: ", layers)]))
    network, trained = read_network2d(path, flip_test=flip)
    layers["data"] = {"image_size": size or trained}
    config = configuration.from_dicts([("command line: ", layers)])
    model = PoseModel(config, with_images=False, detector=read_detector(path))
    model.network2d = merge_batchnorm(network)
    return build_detector(config, model.eval())
