"""Builds models with their weights: as a configuration or as a file of weights says."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptri import checkpoint
from ptri.config import Config, ModelConfig, from_dicts, replace
from ptri.errors import UserError
from ptri.fields import kinds_of
from ptri.models.heads.volumetric import FEATURES, SIDE
from ptri.models.heatmap import WINDOW
from ptri.models.network2d import Network2D
from ptri.models.pose_model import PoseModel
from ptri.models.sizes import Sizes
from ptri.skeleton import H36M17
from ptri.structures import UNKNOWN_DETECTOR, Detector

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints/ptri_3d.pt"
_PREFIX_2D = "network2d."
# What earlier versions could choose, and what it always is now.
_NO_LONGER_CHOSEN = {"heatmap_window": WINDOW, "volume_side": SIDE, "volume_features": FEATURES}


def build_model(config: Config, with_images: bool = True) -> PoseModel:
    """The model with the weights that ``init`` names; strict.

    ``init.checkpoint_3d`` may hold the whole model or lifter and fusion alone;
    ``init.checkpoint_2d`` holds the 2D network, and wins over a whole model's. What is known of
    that network comes with it, see `known_detector`.

    Raises:
        UserError: a missing or corrupt file, or weights of another architecture.
    """
    model = PoseModel(config, with_images, known_detector(config, with_images))
    init = config.init
    if init.checkpoint_3d is not None:
        weights, meta = checkpoint.load_weights(init.checkpoint_3d)
        check_head(config, meta, init.checkpoint_3d)
        if with_images and any(name.startswith(_PREFIX_2D) for name in weights):
            checkpoint.load_state(model, weights, init.checkpoint_3d)
        else:
            weights = {k: v for k, v in weights.items() if not k.startswith(_PREFIX_2D)}
            parts = nn.ModuleDict({"lifter": model.lifter, "fusion": model.fusion})
            checkpoint.load_state(parts, weights, init.checkpoint_3d)
    if with_images and init.checkpoint_2d is not None:
        checkpoint.initialise(model.network2d, init.checkpoint_2d)
    return model


def find_model(model: nn.Module | str | Path | None, device: torch.device) -> PoseModel:
    """A model in evaluation mode on a device, for keypoints of which nothing is known.

    Files are kept in memory: the same one is read once, and again when it has changed.

    Args:
        model: one with its weights, or a file of lifter and fusion; None: the shipped one.

    Raises:
        UserError: a model elsewhere or in training mode; a file as of `build_model`.
    """
    if isinstance(model, nn.Module):
        place = next(model.parameters()).device
        if place != device:
            raise UserError(f"model: on {place}, but the keypoints are on {device}; move one")
        if model.training:
            raise UserError("model: in training mode; call model.eval() first")
        return model
    if model is not None and not isinstance(model, (str, Path)):
        raise UserError(f"model: {type(model).__name__}; expected a PoseModel or a file of weights")
    path = SHIPPED if model is None else Path(model)
    if model is None and not path.is_file():
        raise UserError(f"model: no weights at {path}; give model=path/to/ptri_3d.pt")
    state = path.stat() if path.is_file() else None
    version = state and (state.st_mtime_ns, state.st_size)
    return _load_pose_model(str(path), version, str(device))


@functools.lru_cache(maxsize=4)
def _load_pose_model(path: str, version: object, device: str) -> PoseModel:
    config = from_dicts([("", {"run": {"name": "rig"}, "init": {"checkpoint_3d": path}})])
    return build_model(config, with_images=False).eval().to(device)


def build_around(config: Config, part: str, with_images: bool = True) -> PoseModel:
    """A new model of which ``init.checkpoint_3d`` gives one part alone.

    Args:
        part: "lifter" or "fusion"; the other may then be of another architecture.

    Raises:
        UserError: as `build_model`.
    """
    path = config.init.checkpoint_3d
    model = build_model(replace(config, init__checkpoint_3d=None), with_images)
    if part == "fusion":
        check_head(config, checkpoint.load_weights(path)[1], path)
    checkpoint.initialise(getattr(model, part), path, f"{part}.")
    return model


def model_settings(path: str | Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The section ``model`` that a file's metadata say it was made with; {} where they do not.

    Raises:
        UserError: what earlier versions could choose was chosen otherwise than it is now.
    """
    stored = checkpoint.stored_model(meta)
    for name, only in _NO_LONGER_CHOSEN.items():
        if stored.get(name, only) != only:
            raise UserError(
                f"{path}: made with model.{name} of {stored[name]}, which is {only} in this "
                f"version; use the version that made it (commit {meta.get('commit')})"
            )
    if not stored:
        return {}
    kept, moved = (
        {name: value for name, value in stored.items() if name in kinds_of(kind)}
        for kind in (ModelConfig, Sizes)
    )
    return {**kept, "sizes": {**moved, **stored.get("sizes", {})}}


def check_head(config: Config, meta: dict[str, Any], path: str | Path) -> None:
    """Checks that weights are of the configuration's head.

    Raises:
        UserError: they are of another one.
    """
    head = model_settings(path, meta).get("head", "fusion")  # once there was no choice
    if head != config.model.head:
        raise UserError(
            f"{path}: holds the head {head}, the configuration asks for {config.model.head}; set "
            f"model.head={head}, name other weights, or, to train a new head beside the file's "
            "lifter, set train.new=head"
        )


def holds_2d(path: str | Path) -> bool:
    """Whether a file of 3D weights holds the whole model, its 2D network included.

    Raises:
        UserError: a missing or corrupt file.
    """
    return any(name.startswith(_PREFIX_2D) for name in checkpoint.load_weights(path)[0])


def known_detector(config: Config, with_images: bool = True) -> Detector:
    """What is known of the 2D network whose keypoints a model will be given.

    It comes with the network's weights: those of ``init.checkpoint_2d``, or else of a whole model
    in ``init.checkpoint_3d``. Generated keypoints may imitate the network that
    ``init.checkpoint_2d`` names. Of keypoint files (data.kind=recording) nothing is known.

    Raises:
        UserError: a missing or corrupt file.
    """
    init, kind = config.init, config.data.kind
    if kind == "recording":
        return UNKNOWN_DETECTOR
    if init.checkpoint_2d is not None:
        return read_detector(init.checkpoint_2d)
    from_images = with_images or kind == "videos"
    if from_images and init.checkpoint_3d is not None and holds_2d(init.checkpoint_3d):
        return read_detector(init.checkpoint_3d)
    return UNKNOWN_DETECTOR


def read_detector(path: str | Path) -> Detector:
    """What the metadata of a file of weights say of its 2D network; by default nothing.

    Raises:
        UserError: a missing or corrupt file, or metadata that make no sense.
    """
    stored = checkpoint.load_weights(path)[1].get("detector") or {}
    where = f"{path}: meta: detector"
    if not isinstance(stored, dict) or set(stored) - set(Detector._fields):
        raise UserError(f"{where}: expected {', '.join(Detector._fields)}, got {stored!r:.80}")
    return _checked(Detector(**stored), where)


def write_detector(path: str | Path, detector: Detector) -> None:
    """Writes what is known of a 2D network into its file of weights, which stay as they are.

    Raises:
        UserError: a missing or corrupt file, or impossible numbers.
    """
    checkpoint.change_meta(path, "detector", detector_to_meta(_checked(detector, "detector")))


def detector_to_meta(detector: Detector) -> dict[str, Any]:
    """Plain values for the metadata; `read_detector` reads them."""
    values = detector._asdict()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _checked(detector: Detector, where: str) -> Detector:
    bones, joints = len(H36M17.bones), len(H36M17.joints)
    for name, count, what in (("bone_ratio", bones, "bone"), ("overstated", joints, "joint")):
        values = getattr(detector, name)
        if not _positive(values) or len(values) not in (0, count):
            raise UserError(
                f"{where}.{name}: expected {count} positive numbers, one a {what} of h36m17, or "
                f"none, got {values!r:.200}; scripts/fit_errors.py writes them"
            )
    worth = detector.frame_worth
    if worth is not None and (not _positive([worth]) or worth > 1):
        raise UserError(f"{where}.frame_worth: expected a number above 0 and at most 1: {worth!r}")
    rate = detector.exchanged
    if not isinstance(rate, (int, float)) or not 0 <= rate <= 0.5:
        raise UserError(f"{where}.exchanged: expected a rate from 0 to 0.5: {rate!r}")
    return Detector(tuple(detector.bone_ratio), tuple(detector.overstated), worth, rate)


def _positive(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(v, (int, float)) and 0 < v < math.inf for v in values
    )


def read_network2d(path: str | Path, **changes: object) -> tuple[Network2D, int]:
    """A 2D network as its file says that it was built, and the image size it was trained at (px).

    Args:
        path: shipped weights or a checkpoint.
        changes: other settings of the section ``model``.

    Raises:
        UserError: no such file, not a 2D network's, or one that does not say how it was built.
    """
    weights, meta = checkpoint.load_weights(path)
    if any(name.startswith("lifter.") for name in weights):
        raise UserError(
            f"{path}: weights of train3d.py; expected a 2D network's, such as "
            "checkpoints/ptri_2d_s0.pt or best.pt of train2d.py"
        )
    made = meta.get("config") or meta
    size = made.get("data", {}).get("image_size") or meta.get("image_size")
    if "model" not in made or size is None:
        raise UserError(f"{path}: does not say how it was built (model, image_size)")
    model = {**model_settings(path, meta), "pretrained": False, **changes}
    config = from_dicts([(f"{path}: ", {"run": {"name": "read"}, "model": model})])
    network = Network2D(config.model)
    checkpoint.load_state(network, weights, path)
    return network, int(size)
