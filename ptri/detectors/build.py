"""The detector that a configuration names."""

from __future__ import annotations

from ptri.config import Config
from ptri.detectors.movenet import THUNDER, MoveNetDetector
from ptri.detectors.ours import OurDetector
from ptri.detectors.people import MultiposePeople, PersonDetector, RtmPeople
from ptri.detectors.protocol import PoseDetector
from ptri.detectors.rtm import RtmDetector
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.system import choose_device


def detector_name(config: Config) -> str:
    """Who finds the keypoints; ``detector.name: auto`` is decided here."""
    if config.detector.name != "auto":
        return config.detector.name
    return "movenet" if config.data.kind == "videos" else "ours"


def build_detector(config: Config, model: PoseModel | None = None) -> PoseDetector:
    """The detector of ``detector.name``, with its weights, on ``run.device``.

    Args:
        model: whose 2D network "ours" is; others do not need it.

    Raises:
        UserError: weights that are missing, corrupt or of another network; a package is missing.
    """
    name, weights = detector_name(config), config.detector.weights
    if name == "movenet":
        return MoveNetDetector(weights or THUNDER).to(choose_device(config.run.device))
    if name == "rtmlib":
        return RtmDetector(weights, choose_device(config.run.device))
    if weights is not None:
        raise UserError(
            f"detector.weights: {weights}, but the detector is ours, whose weights are "
            "init.checkpoint_2d; leave it out, or set detector.name"
        )
    if model is None:
        raise UserError("detector.name: ours, but the model was built without its 2D network")
    return OurDetector(model, config)


def build_person_detector(config: Config) -> PersonDetector:
    """The person detector of ``detector.people``, with its weights.

    Raises:
        UserError: as `build_detector`.
    """
    kinds = {"movenet": MultiposePeople, "rtmlib": RtmPeople}
    return kinds[config.detector.people](config.detector.people_weights)
