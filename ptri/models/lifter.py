"""The lifter: one view's keypoints to a metric skeleton in that camera's frame.

It is where the rig posterior starts. Skeletons of two views differ by the relative pose of the
cameras, so Procrustes alignment gives rotations and translations at once, in mm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptri.geometry.alignment import look_at, place_on_rays
from ptri.geometry.cameras import pixel_to_normalised
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

NUM_JOINTS = len(H36M17.joints)


class Lifted(NamedTuple):
    """Skeletons in the camera frames."""

    joints3d: Tensor  # (..., J, 3) mm, with depth
    relative: Tensor  # (..., J, 3) mm, root-relative
    sigma: Tensor  # (..., J) mm, expected error of the relative joints


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Lifter(nn.Module):
    """A residual perceptron on the keypoints of one view, seen by a camera that faces the person.

    Turning the camera to the person's centre and dividing by the spread of the keypoints leaves
    the shape of the projection; the depth comes back in closed form, from the metric size of the
    predicted skeleton.
    """

    def __init__(self, width: int = 512, num_blocks: int = 3) -> None:
        super().__init__()
        self.input = nn.Linear(NUM_JOINTS * 4 + 1, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(num_blocks)))
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_JOINTS * 4))

    def forward(self, keypoints: Keypoints, K: Tensor) -> Lifted:
        """
        Args:
            keypoints: (..., J, ...) px, the first 17 joints those of Human3.6M; NaN = not seen.
            K: (..., 3, 3) px.

        Returns:
            Skeletons (..., 17, 3) in the camera frame; finite even where nothing is seen.
        """
        xy, confidence = keypoints.xy[..., :NUM_JOINTS, :], keypoints.confidence[..., :NUM_JOINTS]
        seen = torch.isfinite(xy).all(-1) & (confidence > 0)
        weight = torch.where(seen, confidence.clamp_min(1e-3), torch.zeros_like(confidence))
        rays = pixel_to_normalised(torch.where(seen[..., None], xy, torch.zeros_like(xy)), K)
        # 1e-6 guards views that see nobody.
        share = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)
        centre = (share[..., None] * rays).sum(-2)
        turn = look_at(centre)  # (..., 3, 3), camera to facing camera
        facing = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1) @ turn.mT
        # 0.1 guards outliers at right angles to the person.
        plane = facing[..., :2] / facing[..., 2:].clamp_min(0.1)
        spread = (share * plane.square().sum(-1)).sum(-1, keepdim=True).sqrt().clamp_min(1e-4)
        plane = (plane / spread[..., None]).clamp(-5, 5)
        focal = K.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1)
        covariance = keypoints.covariance[..., :NUM_JOINTS, :, :]
        variance = 0.5 * covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-6)
        noise = variance.sqrt() / (focal[..., None] * spread)  # relative to the person
        noise = torch.where(seen, noise.clamp(1e-4, 10).log() / 4 + 1, torch.zeros_like(noise))
        x = torch.cat(
            [
                torch.where(seen[..., None], plane, torch.zeros_like(plane)).flatten(-2),
                weight,
                noise,
                (spread.log() + 2) / 2,
            ],
            dim=-1,
        )
        result = self.output(self.blocks(self.input(x))).unflatten(-1, (NUM_JOINTS, 4))
        relative = 500.0 * result[..., :3] @ turn  # back to the camera's axes
        relative = relative - relative[..., H36M17.root, None, :]
        sigma = 100.0 * torch.exp(result[..., 3].clamp(-4, 3))
        root = place_on_rays(relative, rays, weight)
        return Lifted(relative + root.unsqueeze(-2), relative, sigma)


def lifting_loss(lifted: Lifted, truth: Tensor) -> Tensor:
    """Negative log likelihood (...,) of the root-relative joints under Laplace errors.

    Args:
        truth: (..., 17, 3) mm in the same camera frames.
    """
    truth = truth - truth[..., H36M17.root, None, :]
    # 1e-3 mm keeps the root's norm differentiable at zero.
    error = (lifted.relative - truth).square().sum(-1).add(1e-6).sqrt()
    return (error / lifted.sigma + 3 * (lifted.sigma / 100).log()).mean(-1)
