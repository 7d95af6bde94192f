"""Our own 2D network (`ptri.models.network2d`) as one detector among others."""

from __future__ import annotations

from torch import Tensor, nn

from ptri import checkpoint
from ptri.config import Config
from ptri.models.pose_model import PoseModel
from ptri.skeleton import H36M17
from ptri.structures import Keypoints


class OurDetector(nn.Module):
    """A `ptri.detectors.protocol.PoseDetector` by the 2D network of a model."""

    name = "ours"
    skeleton = H36M17

    def __init__(self, model: PoseModel, config: Config) -> None:
        """
        Args:
            model: with its 2D network, and what is known of it.
            config: section data says which crops it takes.
        """
        super().__init__()
        self.model = model
        self.image_size, self.crop_scale = config.data.image_size, config.data.crop_scale
        self.known = model.detector

    def forward(self, images: Tensor) -> Keypoints:
        """See `PoseDetector`."""
        place = next(self.model.parameters()).device
        return self.model.detect(images.to(place)).keypoints

    def fingerprint(self) -> str:
        network = getattr(self.model, "network2d", None) or self.model
        flip = getattr(network, "flip_test", False)
        return checkpoint.digest(network) + (" with the mirrored image" if flip else "")
