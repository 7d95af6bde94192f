"""Triangulation in closed form from factored ray moments: no SVD, one matrix product.

A view's observation enters through a 3 x 3 moment ``N = P^T L P`` of its ray alone, with
``P = [[1, 0, -x], [0, 1, -y]]`` (a point's homogeneous image residual is ``P x_cam = z (pi - u)``)
and L the 2 x 2 information of the normalised coordinates divided by the squared depth. For a
camera (R, t) the weighted squared error ``sum_v (R X + t)^T N (R X + t)`` is quadratic in X with

    H = sum_v R^T N R,        g = -sum_v R^T N t,        X = H^-1 g.

H and g are linear in N, so all hypotheses and all joints are one product of a (M * 9, 6 V)
matrix that depends on the cameras with a (6 V, T J) matrix that depends on the observations.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Row and column of the six entries that store a symmetric 3 x 3 matrix.
SYMMETRIC = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def ray_moments(xy: Tensor, information: Tensor) -> Tensor:
    """Moments of rays, the six entries of each symmetric ``P^T L P``.

    Args:
        xy: (..., 2) normalised image coordinates, finite.
        information: (..., 2, 2) inverse covariance over the squared depth; zero = not seen.

    Returns:
        (..., 6), entries in the order of ``SYMMETRIC``.
    """
    x, y = xy.unbind(-1)
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    p, q = a * x + b * y, b * x + c * y
    return torch.stack([a, b, -p, c, -q, p * x + q * y], dim=-1)


def camera_matrix(R: Tensor, t: Tensor | None = None) -> Tensor:
    """The (..., 9, 6 V) matrix that takes stacked ray moments to the entries of H and of g.

    Args:
        R: (..., V, 3, 3); t: (..., V, 3), None: the (..., 6, 6 V) rows of H alone.
    """
    # H_ij = sum_kl R_ki N_kl R_lj and g_i = -sum_kl R_ki N_kl t_l, of a symmetric N.
    columns, (i, j) = R, (list(part) for part in zip(*SYMMETRIC))
    if t is not None:
        columns = torch.cat([R, -t.unsqueeze(-1)], dim=-1)  # (..., V, 3, 4)
        i, j = [*i, 0, 1, 2], [*j, 3, 3, 3]
    left, right = columns[..., i].unbind(-2), columns[..., j].unbind(-2)  # 3 times (..., V, 9)
    parts = []
    for k, m in SYMMETRIC:
        part = left[k] * right[m]
        parts.append(part if k == m else part + left[m] * right[k])
    return torch.stack(parts, dim=-2).flatten(-3, -2).mT


def symmetric_inverse(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse entries and log-determinant of symmetric 3 x 3 matrices, by the adjugate.

    Args:
        entries: (6, ...) in the order of ``SYMMETRIC``; positive definite.

    Returns:
        ((6, ...) entries of the inverse, (...,) log determinant).
    """
    a, b, c, d, e, f = entries.unbind(0)
    adj = torch.stack(
        [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
    )
    det = a * adj[0] + b * adj[1] + c * adj[2]
    # 1e-30 guards the logarithm of a determinant that rounding made zero or negative.
    det = det.clamp_min(1e-30)
    return adj / det, det.log()


def triangulate(
    moments: Tensor, R: Tensor, t: Tensor, prior_mean: Tensor, prior_precision: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Triangulates every joint under every camera hypothesis.

    A weak isotropic prior keeps joints that fewer than two views see finite.

    Args:
        moments: (B, N, V, 6) ray moments of N points (frames times joints), 1/mm^2.
        R, t: (M, B, V, 3, 3) and (M, B, V, 3) mm, hypotheses.
        prior_mean: (B, N, 3) mm, reference frame.
        prior_precision: 1/mm^2, isotropic; one or (N,).

    Returns:
        Points (M, B, N, 3) mm, covariance entries (6, M, B, N) mm^2 in the order of
        ``SYMMETRIC`` and the log-determinant (M, B, N) of the precision.
    """
    M = R.shape[0]
    matrix = camera_matrix(R, t).transpose(0, 1).flatten(1, 2)  # (B, M * 9, 6 V)
    stacked = moments.flatten(-2).transpose(-1, -2)  # (B, 6 V, N)
    product = (matrix @ stacked).unflatten(1, (M, 9)).permute(2, 1, 0, 3)  # (9, M, B, N)
    ridge = moments.new_tensor([1.0, 0, 0, 1.0, 0, 1.0])[:, None, None, None]
    entries = product[:6] + ridge * prior_precision
    right = product[6:] + prior_precision * prior_mean.permute(2, 0, 1)[:, None]  # (3, M, B, N)
    covariance, log_det = symmetric_inverse(entries)
    a, b, c, d, e, f = covariance.unbind(0)
    u, v, w = right.unbind(0)
    points = torch.stack(
        [a * u + b * v + c * w, b * u + d * v + e * w, c * u + e * v + f * w], dim=-1
    )
    return points, covariance, log_det


def symmetric_to_matrix(entries: Tensor) -> Tensor:
    """(6, ...) entries of symmetric matrices to (..., 3, 3)."""
    a, b, c, d, e, f = entries.unbind(0)
    return torch.stack([a, b, c, b, d, e, c, e, f], dim=-1).unflatten(-1, (3, 3))
