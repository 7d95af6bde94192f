"""The networks of the 3D model: images to keypoints, keypoints to skeletons of single views, and
keypoints under a rig's cameras to joints. Cameras are estimated in `ptri.rig.estimate`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.models.heads import make_head
from ptri.models.heatmap import sample_features
from ptri.models.lifter import Lifted, Lifter
from ptri.models.network2d import Detection, Network2D
from ptri.models.sizes import sizes_of
from ptri.posterior.moments import resample
from ptri.structures import (
    UNKNOWN_DETECTOR,
    Detector,
    Keypoints,
    Prediction,
    RigPosterior,
    cat,
    tree_map,
)

IMAGES_AT_ONCE = 8  # on a CPU: activations of more leave its caches, three times slower


class PoseModel(nn.Module):
    """2D network, lifter and fusion; and what is known of how the 2D network errs."""

    def __init__(
        self, config: Config, with_images: bool = True, detector: Detector = UNKNOWN_DETECTOR
    ) -> None:
        """
        Args:
            config: section model.
            with_images: with the 2D network; without it the model starts from keypoints.
            detector: what is known of where the keypoints come from.
        """
        super().__init__()
        model = config.model
        sizes = sizes_of(model)
        self.network2d = Network2D(model) if with_images else None
        self.lifter = Lifter(sizes.lifter_width, sizes.lifter_blocks)
        self.fusion = make_head(model)  # a fusion transformer, or a head for ablation
        self.fusion_samples = model.fusion_samples
        self.detector = detector

    def train(self, mode: bool = True) -> PoseModel:
        """Training mode; the 2D network's BatchNorm keeps its statistics, so that a result does
        not depend on the batch (or the process) it is computed in."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def detect(self, images: Tensor) -> Detection:
        """Keypoints, heatmaps and features of images (N, 3, H, W), see `Network2D`."""
        if self.network2d is None:
            raise ValueError("this model was built without its 2D network")
        if images.device.type != "cpu" or torch.is_grad_enabled():
            return self.network2d(images)
        return cat([self.network2d(part) for part in images.split(IMAGES_AT_ONCE)])

    def joint_features(self, detection: Detection) -> Tensor:
        """Backbone features (N, J, C) at the keypoints of N images."""
        return sample_features(detection.features.float(), detection.keypoints.xy)

    def lift(self, keypoints: Keypoints, K: Tensor) -> Lifted:
        """Skeletons of single views, from keypoints (..., J, ...) px and K (..., 3, 3) px."""
        return self.lifter(*tree_map(Tensor.float, (keypoints, K)))

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def fuse(
        self,
        keypoints: Keypoints,
        K: Tensor,
        posterior: RigPosterior,
        joint_features: Tensor | None = None,
    ) -> Prediction:
        """Joints of T successive frames under a rig posterior (of these frames or of others).

        Args:
            keypoints: (B, T, V, J, ...) px, left and right as read; K: (B, T, V, 3, 3) px.
            posterior: of B rigs.
            joint_features: (B, T, V, 17, C) backbone features at the keypoints.

        Returns:
            (B, T, 17, 3) mm in view 0's frame and (B, T, 17, 3, 3) mm^2, root-relative; float32.
        """
        B, T = keypoints.xy.shape[:2]
        samples = resample(posterior, self.fusion_samples)[:3]
        samples = [value.repeat_interleave(T, dim=1).float() for value in samples]  # (M, B T, ...)
        keypoints, K, joint_features = tree_map(
            lambda value: value.flatten(0, 1).float(), (keypoints, K, joint_features)
        )
        prediction = self.fusion(keypoints, K, *samples, joint_features, num_frames=T)
        return Prediction(*(value.unflatten(0, (B, T)) for value in prediction))
