"""The lifter: one view's keypoints to a metric skeleton in that camera's frame.

It is where the rig posterior starts. Skeletons of two views differ by the relative pose of the
cameras, so Procrustes alignment gives rotations and translations at once, in mm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, scaled_dot_product_attention

from ptri.geometry.alignment import look_at, place_on_rays
from ptri.geometry.cameras import pixel_to_normalised
from ptri.models.losses import masked_mean
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

NUM_JOINTS = len(H36M17.joints)
NUM_HEADS = 4
MEDIAN_STEPS = 6  # of Weiszfeld's iteration
INLIER_MM = 100.0  # at the person's depth; a keypoint farther off its joint is an outlier


class Lifted(NamedTuple):
    """Skeletons in the camera frames."""

    joints3d: Tensor  # (..., J, 3) mm, with depth
    relative: Tensor  # (..., J, 3) mm, root-relative
    sigma: Tensor  # (..., J) mm, expected error of the relative joints
    inlier_logits: Tensor  # (..., J), of keypoints within INLIER_MM of their joints


class _Layer(nn.Module):
    """Attention over joints, then a perceptron on each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, NUM_HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (N, heads, J, C)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        x = x + self.mix(mixed)
        return x + self.perceptron(x)


class Lifter(nn.Module):
    """A transformer over the keypoints of one view, seen by a camera that faces the person.

    Turning the camera to the keypoints' geometric median and dividing by their median distance
    from it leaves the shape of the projection, whatever a few outliers do; the depth comes back
    in closed form, from the metric size of the predicted skeleton.
    """

    def __init__(self, width: int = 128, num_layers: int = 4) -> None:
        """
        Args:
            width: features per joint, a multiple of 4.
        """
        super().__init__()
        self.input = nn.Linear(6, width)
        self.joint = nn.Parameter(0.5 * torch.randn(NUM_JOINTS, width))
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(num_layers)))
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5))

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
        weight = torch.where(seen, confidence.clamp_min(1e-3), 0.0)
        rays = pixel_to_normalised(torch.where(seen[..., None], xy, 0.0), K)
        directions = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        turn = look_at(_median_ray(directions, weight))  # (..., 3, 3), camera to facing camera
        facing = directions @ turn.mT
        # 0.1 guards outliers at right angles to the person.
        plane = facing[..., :2] / facing[..., 2:].clamp_min(0.1)
        radius = torch.where(seen, plane.norm(dim=-1), torch.nan)
        radius = 1.2 * radius.nanmedian(-1, keepdim=True).values
        radius = radius.nan_to_num(1.0).clamp_min(1e-4)  # guards few or no keypoints
        plane = (plane / radius[..., None]).clamp(-4, 4)
        focal = K.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1)
        covariance = keypoints.covariance[..., :NUM_JOINTS, :, :]
        variance = 0.5 * covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-6)
        noise = variance.sqrt() / (focal[..., None] * radius)  # relative to the person
        noise = noise.clamp(1e-4, 10).log() / 4 + 1
        size = ((radius.log() + 2) / 2).expand_as(weight)
        x = torch.stack([*plane.unbind(-1), weight, noise, size, torch.ones_like(weight)], dim=-1)
        x = torch.where(seen[..., None], x, 0.0)
        x = self.layers((self.input(x) + self.joint).flatten(0, -3))
        result = self.output(x).unflatten(0, xy.shape[:-2])
        relative = 500.0 * result[..., :3] @ turn  # back to the camera's axes
        relative = relative - relative[..., H36M17.root, None, :]
        sigma = 100.0 * torch.exp(result[..., 3].clamp(-4, 3))
        root = place_on_rays(relative, rays, weight * result[..., 4].sigmoid())
        return Lifted(relative + root.unsqueeze(-2), relative, sigma, result[..., 4])


def _median_ray(directions: Tensor, weight: Tensor) -> Tensor:
    """Geometric median (..., 2), as (x, y) / z, of unit vectors (..., J, 3), weights (..., J)."""
    share = weight
    for _ in range(MEDIAN_STEPS):
        # 1e-6 guards views that see nobody, 1e-3 a keypoint on the median.
        centre = (share[..., None] * directions).sum(-2)
        centre = centre / share.sum(-1, keepdim=True).clamp_min(1e-6)
        share = weight / ((directions - centre.unsqueeze(-2)).norm(dim=-1) + 1e-3)
    return centre[..., :2] / centre[..., 2:].clamp_min(1e-6)


def lifting_loss(lifted: Lifted, truth: Tensor, keypoints: Keypoints, K: Tensor) -> Tensor:
    """Loss (...,) of a skeleton: that of its joints and that of its doubts about the keypoints.

    The first is the negative log likelihood of the root-relative joints under Laplace errors, the
    second the cross-entropy of which keypoints lie within `INLIER_MM` of their joints.

    Args:
        truth: (..., 17, 3) mm in the same camera frames; NaN = not known, which does not count.
        keypoints: (..., J, ...) px. K: (..., 3, 3) px.
    """
    relative = truth - truth[..., H36M17.root, None, :]
    known = torch.isfinite(relative).all(-1)
    # 1e-3 mm keeps the root's norm differentiable at zero.
    error = torch.where(known[..., None], lifted.relative - relative, 0.0)
    error = error.square().sum(-1).add(1e-6).sqrt()
    joints = masked_mean(error / lifted.sigma + 3 * (lifted.sigma / 100).log(), known)

    xy = keypoints.xy[..., :NUM_JOINTS, :]
    seen = torch.isfinite(xy).all(-1)
    rays = pixel_to_normalised(torch.where(seen[..., None], xy, 0.0), K)
    # 1 mm guards joints behind the camera.
    off = (rays - truth[..., :2] / truth[..., 2:].clamp_min(1.0)).norm(dim=-1)
    inlier = off * truth[..., H36M17.root, None, 2] < INLIER_MM
    logits = lifted.inlier_logits
    doubt = binary_cross_entropy_with_logits(logits, inlier.to(logits), reduction="none")
    return joints + (doubt * (seen & known)).mean(-1)
