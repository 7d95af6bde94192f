"""The volumetric head: a cube of voxels around the person, under each camera sample.

The calibrated parent's head (Learnable Triangulation, Iskakov et al., ICCV 2019, section 3.2) on
posterior samples: per-view maps are unprojected into a cube around the pelvis, averaged by
confidence, sharpened by 3D convolutions and read out by a soft-argmax. The maps are the keypoints'
Gaussians (covariance, confidence); features at the keypoints are spread with the same Gaussians.
The cube turns with the body instead of at random, so that neither the reference view nor the order
of the views matters. Smaller than the published one (64 voxels a side), for a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptri.errors import UserError
from ptri.geometry.rays import normalise
from ptri.models.fusion import (
    NUM_JOINTS,
    about_root,
    body_frame,
    body_keypoints,
    mixture,
    robust_joints,
)
from ptri.skeleton import H36M17
from ptri.structures import take

SIDE = 2500.0  # mm, of the cube around the pelvis
FEATURES = 8  # channels of backbone features in it
CUBES_AT_ONCE = 32  # bounds the memory
BLUR = 0.8  # voxels, least standard deviation of an unprojected Gaussian
NOTHING = -30.0  # log of a map's value where there is nothing
NEAREST = 100.0  # mm, least depth of a voxel that a view sees


class _Residual(nn.Module):
    """Two 3 x 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [_convolution(width, width), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*parts, nn.GroupNorm(4, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _convolution(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, width, 3, padding=1), nn.GroupNorm(4, width))


class VolumetricHead(nn.Module):
    """Joints from unprojected maps; the interface of `FusionTransformer`."""

    uses_cameras = True

    def __init__(self, size: int = 20, width: int = 16, num_features: int = 64) -> None:
        """
        Args:
            size: voxels a side, even. width: channels, a multiple of 4.
            num_features: channels of ``joint_features``.

        Raises:
            UserError: sizes that the convolutions cannot halve or group.
        """
        super().__init__()
        if size % 2 or width % 4:
            raise UserError(
                f"model.sizes.volume_size, volume_width: {size} voxels and {width} channels; the "
                "voxels must be a multiple of 2, the channels of 4"
            )
        self.size, self.voxel = size, SIDE / size
        axis = self.voxel * (torch.arange(size) - (size - 1) / 2)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
        self.register_buffer("grid", grid.reshape(-1, 3), persistent=False)  # mm, body frame
        self.stem = _convolution(NUM_JOINTS, width)
        self.features = nn.Linear(num_features, FEATURES, bias=False)
        self.feature_stem = nn.Conv3d(FEATURES, width, 1, bias=False)
        nn.init.zeros_(self.feature_stem.weight)  # pre-training without images changes nothing
        double = 2 * width
        down = nn.Conv3d(width, double, 2, 2), nn.GroupNorm(4, double), nn.ReLU()
        across = _Residual(double), _Residual(double)
        self.coarse = nn.Sequential(*down, *across, nn.ConvTranspose3d(double, width, 2, 2))
        self.output = nn.Conv3d(width, NUM_JOINTS, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.gain = nn.Parameter(torch.tensor(12.0))  # of the averaged maps themselves
        self.log_scale = nn.Parameter(torch.full((NUM_JOINTS,), -1.5))  # of the cloud's deviations
        self.log_floor = nn.Parameter(torch.full((NUM_JOINTS,), math.log(25.0)))  # mm

    def forward(self, keypoints, K, R, t, log_weights, joint_features=None, num_frames=1):
        """See `FusionTransformer.forward`."""
        keypoints = body_keypoints(keypoints)
        M, N = R.shape[:2]
        with torch.no_grad():
            points = robust_joints(keypoints, K, R, t)[0]
            centre, frame = points[..., H36M17.root, :], body_frame(points)
        observations = normalise(*take((keypoints, K), (slice(None), None)))
        seen = [part[:, 0] for part in observations[:3]]  # rays, information, confidence
        if joint_features is not None:
            seen.append(self.features(joint_features))
        # (M N, V, J, ...) of every cube; a sample's views are those of its frame.
        seen = [part.expand(M, *part.shape).flatten(0, 1) for part in seen]
        cubes = [*(part.flatten(0, 1) for part in (R, t, centre, frame)), *seen]
        clouds = [self._clouds(*part) for part in zip(*(v.split(CUBES_AT_ONCE) for v in cubes))]
        mean, covariance = (torch.cat(parts).unflatten(0, (M, N)) for parts in zip(*clouds))
        joints = centre.unsqueeze(-2) + mean @ frame
        eye = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
        covariance = (2 * self.log_scale).exp()[:, None, None] * about_root(covariance)
        covariance = covariance + (2 * self.log_floor).exp()[:, None, None] * eye
        turn = frame.unsqueeze(2)
        return mixture(joints, turn.mT @ covariance @ turn, log_weights)

    def _clouds(self, R, t, centre, frame, *seen) -> tuple[Tensor, Tensor]:
        """Means (S, J, 3) mm and covariances (S, J, 3, 3) mm^2 of S cubes' soft-argmax."""
        world = centre.unsqueeze(1) + self.grid @ frame  # (S, P, 3)
        # Recomputed in the backward pass: V J maps of each cube are too many to keep.
        maps, features = checkpoint(self._unproject, R, t, world, *seen, use_reentrant=False)
        cube = (self.size,) * 3
        x = self.stem(maps.unflatten(-1, cube))
        if features is not None:
            x = x + self.feature_stem(features.unflatten(-1, cube))
        x = torch.relu(x)
        logits = self.output(torch.relu(x + self.coarse(x))).flatten(2) + self.gain * maps
        share = logits.softmax(-1)  # (S, J, P)
        mean = share @ self.grid
        square = (self.grid.unsqueeze(-1) * self.grid.unsqueeze(-2)).flatten(1)  # (P, 9)
        second = (share @ square).unflatten(-1, (3, 3))
        # (a hundredth of a voxel)^2 guards a cloud that is a single voxel.
        guard = (0.01 * self.voxel) ** 2 * torch.eye(3, dtype=mean.dtype, device=mean.device)
        return mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2) + guard

    def _unproject(self, R, t, world, rays, information, confidence, features=None):
        """Maps (S, J, P) averaged over the views by confidence, and features (S, F, P) or None."""
        maps, spread = 0.0, None
        for view in range(R.shape[1]):
            camera = world @ R[:, view].mT + t[:, view, None]  # (S, P, 3)
            depth = camera[..., 2].clamp_min(NEAREST)
            x, y = (camera[..., :2] / depth[..., None]).unbind(-1)  # (S, P)
            # A Gaussian narrower than a voxel would fall between them.
            blur = (BLUR * self.voxel / depth.mean(-1)).square()[:, None]
            exponent = _exponent(rays[:, view], information[:, view], confidence[:, view], blur)
            behind = (camera[..., 2] <= NEAREST).to(x)
            basis = torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x), behind], dim=1)
            heat = (exponent @ basis).exp()  # (S, J, P)
            maps = maps + heat
            if features is not None:
                part = torch.einsum("sjp,sjf->sfp", heat, features[:, view])
                spread = part if spread is None else spread + part
        total = confidence.sum(1)[..., None].clamp_min(1e-3)  # guards a joint that no view sees
        return maps / total, spread


def _exponent(rays: Tensor, information: Tensor, confidence: Tensor, variance: Tensor) -> Tensor:
    """Coefficients (S, J, 7) of ``log c - (u - r)^T A (u - r) / 2`` in x^2, xy, y^2, x, y, 1 and
    "behind the view", with ``A = (L^-1 + v I)^-1 = (L + v |L| I) / |I + v L|``.

    Args:
        rays: r (S, J, 2). information: L (S, J, 2, 2), zero where not seen. confidence: c (S, J).
        variance: v (S, 1).
    """
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    determinant = a * c - b * b
    total = 1 + variance * (a + c) + variance.square() * determinant
    a, b, c = (a + variance * determinant) / total, b / total, (c + variance * determinant) / total
    x, y = rays.unbind(-1)
    p, q = a * x + b * y, b * x + c * y
    # e^-30 stands for a confidence of zero.
    level = confidence.clamp_min(math.exp(NOTHING)).log() - 0.5 * (p * x + q * y)
    nothing = torch.full_like(a, NOTHING)
    return torch.stack([-0.5 * a, -b, -0.5 * c, p, q, level, nothing], dim=-1)
