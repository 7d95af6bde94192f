"""The fixed-views head: views side by side into a perceptron, no cameras.

What version 2 of the published code does: so many views, always in the same order, and
root-relative joints in the first view's frame; extrinsics are neither given nor estimated. The
network learns its training rig by heart. The root is set on the first view's ray, at a depth
from the person's apparent size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptri.errors import UserError
from ptri.models.fusion import LENGTH, NUM_JOINTS, body_keypoints, cholesky
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, Prediction

FEATURES = 4  # channels kept of each joint's backbone features
PERSON = 450.0  # mm, typical spread of a person's joints in an image, for the depth
SIGMA = 60.0  # mm, unit of the covariance's factor


class _Block(nn.Module):
    """Two layers beside the identity (Martinez et al., ICCV 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [[nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()] for _ in range(2)]
        self.body = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class FixedViewsMLP(nn.Module):
    """A perceptron on V fixed views; the interface of `FusionTransformer`."""

    uses_cameras = False

    def __init__(self, num_views: int = 4, width: int = 512, num_features: int = 64) -> None:
        super().__init__()
        self.num_views = num_views
        self.features = nn.Linear(num_features, FEATURES, bias=False)
        inputs = num_views * (5 * NUM_JOINTS + 3)
        self.views = nn.Linear(inputs, width)
        self.view_features = nn.Linear(num_views * NUM_JOINTS * FEATURES, width, bias=False)
        nn.init.zeros_(self.view_features.weight)  # pre-training without images changes nothing
        self.body = nn.Sequential(nn.ReLU(), _Block(width), _Block(width))
        self.joints = nn.Linear(width, 3 * NUM_JOINTS)
        self.spread = nn.Linear(width, 6 * NUM_JOINTS)
        self.root = nn.Linear(width, 3)
        for layer in (self.joints, self.spread, self.root):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)

    def forward(self, keypoints, K, R, t, log_weights, joint_features=None, num_frames=1):
        """See `FusionTransformer.forward`; R, t and log_weights take no part.

        Raises:
            UserError: another number of views than the head was made for.
        """
        V = K.shape[1]
        if self.num_views != V:
            raise UserError(
                f"model.sizes.fixed_views: fixed_views_mlp takes {self.num_views} views, in "
                f"the order of its training; given {V}. Choose so many (data.views; of generated "
                "people generated.min_views and max_views), or train it with another number"
            )
        numbers, middle, size = _numbers(body_keypoints(keypoints), K)
        x = self.views(numbers.flatten(1))
        if joint_features is not None:
            x = x + self.view_features(self.features(joint_features).flatten(1))
        x = self.body(x)
        relative = LENGTH * self.joints(x).unflatten(-1, (NUM_JOINTS, 3))
        relative = relative - relative[:, H36M17.root, None]
        shift, log_depth = self.root(x).split([2, 1], dim=-1)
        ray = torch.cat([middle[:, 0] + size[:, 0] * shift, torch.ones_like(log_depth)], dim=-1)
        root = PERSON / size[:, 0] * log_depth.clamp(-3, 3).exp() * ray
        chol = SIGMA * cholesky(self.spread(x).unflatten(-1, (NUM_JOINTS, 6)))
        return Prediction(relative + root.unsqueeze(1), chol @ chol.mT)


def _numbers(keypoints: Keypoints, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the perceptron sees (N, V, 5 J + 3), and each view's middle and size.

    Returns:
        The numbers; the middle (N, V, 2) and the size (N, V, 1) of the person in normalised
        coordinates.
    """
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)  # (N, V, J)
    there = seen.unsqueeze(-1)
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    rays = torch.where(there, (keypoints.xy - K[..., None, :2, 2]) / focal, 0.0)
    count = seen.sum(-1)[..., None].clamp_min(1)
    middle = rays.sum(-2) / count
    offset = torch.where(there, rays - middle.unsqueeze(-2), 0.0)
    # 0.01 guards a view that sees a joint or none.
    size = (offset.square().sum((-1, -2))[..., None] / count).sqrt().clamp_min(0.01)
    variance = 0.5 * keypoints.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    variance = torch.where(seen, variance, 1.0).clamp_min(1e-8)  # px^2; guards the logarithm
    noise = (variance.sqrt() / focal.mean(-1) / size / 0.05).log()
    confidence = torch.where(seen, keypoints.confidence, 0.0)
    each = [offset[..., 0] / size, offset[..., 1] / size, seen.to(rays), confidence]
    each += [torch.where(seen, noise, 0.0)]
    numbers = torch.cat([*each, 5 * middle, (size / 0.1).log()], dim=-1)
    return numbers, middle, size
