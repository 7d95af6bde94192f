"""Rotations: exponential and logarithm, angles, weighted means. Any leading batch dimensions.

Quaternions are in RoMa's order (x, y, z, w); conversions are RoMa's own functions.
"""

from __future__ import annotations

import roma
import torch
from torch import Tensor

# Below this angle (rad) the sine quotient is taken from its series, which is exact in float32.
SMALL_ANGLE = 1e-3


def so3_exp(rotation_vector: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) from rotation vectors (..., 3) in rad."""
    return roma.rotvec_to_rotmat(rotation_vector)


def so3_log(R: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in rad, angle in [0, pi], from rotation matrices (..., 3, 3)."""
    return roma.rotmat_to_rotvec(R)


def rotation_angle(R: Tensor) -> Tensor:
    """Angle (...,) in rad, in [0, pi], of rotation matrices (..., 3, 3).

    From the sine and the cosine together, so that small angles keep their digits.
    """
    axis = torch.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        dim=-1,
    )
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(axis.norm(dim=-1), trace - 1)


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3): skew(a) @ b = a x b."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def upright_axes(across: Tensor, up: Tensor) -> Tensor:
    """Axes (..., 3, 3), one a row, of a trunk: its left, up and forward = left x up.

    Args:
        across: (..., 3) roughly from right to left. up: (..., 3), which is kept.
    """
    up = torch.nn.functional.normalize(up, dim=-1)
    forward = torch.nn.functional.normalize(torch.linalg.cross(across, up), dim=-1)
    return torch.stack([torch.linalg.cross(up, forward), up, forward], dim=-2)


def log_haar_density(angle: Tensor) -> Tensor:
    """Log of the Haar measure's density in the tangent space at an angle (...,) rad.

    Volume element of SO(3) over that of rotation vectors, (2 sin(a/2) / a)^2, which is 1 at 0
    (Chirikjian and Kyatkin, Harmonic Analysis for Engineers, 2016, chapter 5).
    """
    small = angle.abs() < SMALL_ANGLE
    safe = torch.where(small, torch.ones_like(angle), angle)
    quotient = torch.where(small, 1 - angle**2 / 24, 2 * torch.sin(safe / 2) / safe)
    # 1e-12 guards the antipode, where the density is exactly zero only at 2 pi.
    return 2 * torch.log(quotient.abs().clamp_min(1e-12))


def rotation_mean(R: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean rotation: the one nearest to the mean matrix.

    It maximises sum w trace(mean^T R), as the mean quaternion of Markley et al. (2007) does.

    Args:
        R: (M, ..., 3, 3) rotations; the mean is over the first dimension.
        weights: (M, ...) non-negative, summing to one over M.

    Returns:
        (..., 3, 3) rotations.
    """
    return procrustes_rotation(torch.einsum("m...,m...ij->...ij", weights, R))


def procrustes_rotation(covariance: Tensor) -> Tensor:
    """The rotation R (..., 3, 3) that maximises trace(R^T covariance) (Kabsch; Umeyama 1991).

    With covariance = sum w y x^T it is the least-squares rotation that takes x to y.
    """
    return roma.special_procrustes(covariance)
