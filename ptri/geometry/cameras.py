"""Pinhole cameras: projection, rays, reference frames, intrinsics of resized images."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.structures import Cameras

# Depths (mm) nearer than this are treated as this far when dividing; such points project far
# outside any image, so that they count as misses instead of as NaN.
MIN_DEPTH = 1.0


def transform(points: Tensor, R: Tensor, t: Tensor) -> Tensor:
    """Reference-frame points (..., J, 3) to camera frames: ``R x + t``.

    R (..., 3, 3) and t (..., 3) broadcast against the points' leading dimensions.
    """
    return points @ R.transpose(-1, -2) + t.unsqueeze(-2)


def project_normalised(points_camera: Tensor) -> Tensor:
    """Camera-frame points (..., 3) to normalised image coordinates (..., 2), focal length 1."""
    return points_camera[..., :2] / points_camera[..., 2:].clamp_min(MIN_DEPTH)


def project(points: Tensor, cameras: Cameras) -> Tensor:
    """Projects reference-frame joints (..., J, 3) mm into every view: (..., V, J, 2) px."""
    camera_points = transform(points.unsqueeze(-3), cameras.R, cameras.t)  # (..., V, J, 3)
    return normalised_to_pixel(project_normalised(camera_points), cameras.K)


def pixel_to_normalised(xy: Tensor, K: Tensor) -> Tensor:
    """Pixels (..., J, 2) to normalised coordinates (..., J, 2) with K (..., 3, 3), zero skew."""
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    return (xy - K[..., None, :2, 2]) / focal


def normalised_to_pixel(xy: Tensor, K: Tensor) -> Tensor:
    """Normalised coordinates (..., J, 2) to pixels (..., J, 2) with K (..., 3, 3), zero skew."""
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    return xy * focal + K[..., None, :2, 2]


def with_focal(K: Tensor, log_focal: Tensor) -> Tensor:
    """K (..., V, 3, 3) px with focal lengths ``exp(log_focal)``, (..., F), times as long; F = V or
    0: as they are."""
    if not log_focal.shape[-1]:
        return K
    one = torch.ones_like(log_focal)
    factor = torch.stack([log_focal.exp(), log_focal.exp(), one], -1)
    off = K * (1 - torch.eye(3).to(K))
    return off + torch.diag_embed(K.diagonal(dim1=-2, dim2=-1) * factor)


def to_reference(cameras: Cameras) -> Cameras:
    """Expresses world extrinsics in view 0's camera frame, so that R_0 = I and t_0 = 0.

    Args:
        cameras: K, R (..., V, 3, 3), t (..., V, 3) with ``x_cam = R x_world + t``.
    """
    R0, t0 = cameras.R[..., :1, :, :], cameras.t[..., :1, :]
    R = cameras.R @ R0.transpose(-1, -2)
    t = cameras.t - (R @ t0.unsqueeze(-1)).squeeze(-1)
    return Cameras(cameras.K, R, t)


def centres(R: Tensor, t: Tensor) -> Tensor:
    """Camera centres (..., 3) in the reference frame, ``-R^T t``."""
    return -(R.transpose(-1, -2) @ t.unsqueeze(-1)).squeeze(-1)
