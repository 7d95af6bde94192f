"""The algebraic head: triangulation weighted by learned confidences, under each camera sample.

As the algebraic model of Iskakov et al. (ICCV 2019): a small network says from what the detector
says how far each keypoint is to be trusted; the rest is weighted least squares. Its covariance is
the triangulation's, of joint plus root, times a learned factor, plus a learned floor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ptri.models.fusion import NUM_JOINTS, about_root, body_keypoints, mixture, robust_joints
from ptri.structures import Keypoints

ROUNDS = (math.inf, math.inf)  # of weighing by depth; residuals weigh nothing
MAX_LOG_WEIGHT = 6.0  # of a keypoint over its confidence


class AlgebraicHead(nn.Module):
    """Confidence-weighted triangulation; the interface of `FusionTransformer`."""

    uses_cameras = True

    def __init__(self, width: int = 64, num_features: int = 64) -> None:
        super().__init__()
        self.said = nn.Linear(3 + NUM_JOINTS, width)
        self.features = nn.Linear(num_features, width, bias=False)
        nn.init.zeros_(self.features.weight)  # pre-training without images changes nothing
        self.trust = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.log_weight = nn.Linear(width, 1)
        nn.init.zeros_(self.log_weight.weight)
        nn.init.zeros_(self.log_weight.bias)
        self.log_scale = nn.Parameter(torch.zeros(NUM_JOINTS))  # of the stated deviations
        self.log_floor = nn.Parameter(torch.full((NUM_JOINTS,), math.log(20.0)))  # mm

    def forward(self, keypoints, K, R, t, log_weights, joint_features=None, num_frames=1):
        """See `FusionTransformer.forward`."""
        keypoints = body_keypoints(keypoints)
        weight = self.weights(keypoints, K, joint_features)
        joints, covariance, _, _ = robust_joints(
            keypoints._replace(confidence=weight), K, R, t, ROUNDS
        )
        eye = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
        covariance = (2 * self.log_scale).exp()[:, None, None] * about_root(covariance)
        covariance = covariance + (2 * self.log_floor).exp()[:, None, None] * eye
        return mixture(joints, covariance, log_weights)

    def weights(self, keypoints: Keypoints, K: Tensor, joint_features: Tensor | None) -> Tensor:
        """Trust in each keypoint (N, V, J), a factor on its stated information; 0 = not seen."""
        seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
        confidence = torch.where(seen, keypoints.confidence, 0.0)
        variance = 0.5 * keypoints.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        variance = torch.where(seen, variance, 1.0).clamp_min(1e-8)  # px^2; guards the logarithm
        focal = K.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1, keepdim=True)  # (N, V, 1)
        noise = (variance.sqrt() / focal / 0.005).log()  # of 5 mrad
        said = torch.stack([confidence, noise, confidence * noise], dim=-1)
        joint = torch.eye(NUM_JOINTS, dtype=said.dtype, device=said.device)
        x = self.said(torch.cat([said, joint.expand(*said.shape[:-1], NUM_JOINTS)], dim=-1))
        if joint_features is not None:
            x = x + self.features(joint_features)
        log_weight = self.log_weight(self.trust(x)).squeeze(-1)
        return confidence * log_weight.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT).exp()
