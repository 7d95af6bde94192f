"""Triangulation: in closed form from factored ray moments (no SVD, one matrix product), and robust.

A view's observation enters through a 3 x 3 moment ``N = P^T L P`` of its ray alone, with
``P = [[1, 0, -x], [0, 1, -y]]`` (a point's homogeneous image residual is ``P x_cam = z (pi - u)``)
and L the 2 x 2 information of the normalised coordinates divided by the squared depth. For a
camera (R, t) the weighted squared error ``sum_v (R X + t)^T N (R X + t)`` is quadratic in X with

    H = sum_v R^T N R,        g = -sum_v R^T N t,        X = H^-1 g.

H and g are linear in N, so all hypotheses and all joints are one product of a (M * 9, 6 V)
matrix that depends on the cameras with a (6 V, T J) matrix that depends on the observations.

Every robust triangulation is the same two functions in turn, `weighted_triangulation` and
`reproject`, with a rule that makes the keypoints' next weights of their residuals:
`robust_triangulation` here, under every posterior sample in `ptri.models.fusion`, with the mixture
of inliers and outliers in `ptri.rig.joints` and `ptri.posterior.leave_one_out`.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rays import chi_square, normalise
from ptri.structures import Cameras, Keypoints, Observations, Prediction, constant

START_DEPTH = 4000.0  # mm, for the first weights of the views against each other
PRIOR_SIGMA = 1e5  # mm, keeps points finite whose rays are parallel
CAUCHY = 2.0  # standard deviations at which an observation's weight is halved
BEHIND = 20.0  # cost of a point behind a view: as bad as any miss
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
    columns, (i, j) = R, zip(*SYMMETRIC)
    if t is not None:
        columns = torch.cat([R, -t.unsqueeze(-1)], dim=-1)  # (..., V, 3, 4)
        i, j = (*i, 0, 1, 2), (*j, 3, 3, 3)
    # 3 times (..., V, 9) each
    left, right = (columns[..., constant(k, R.device)].unbind(-2) for k in (i, j))
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
        prior_precision: 1/mm^2, isotropic; one, (N,) or (B, N).

    Returns:
        Points (M, B, N, 3) mm, covariance entries (6, M, B, N) mm^2 in the order of
        ``SYMMETRIC`` and the log-determinant (M, B, N) of the precision.
    """
    M = R.shape[0]
    matrix = camera_matrix(R, t).transpose(0, 1).flatten(1, 2)  # (B, M * 9, 6 V)
    stacked = moments.flatten(-2).transpose(-1, -2)  # (B, 6 V, N)
    product = (matrix @ stacked).unflatten(1, (M, 9)).permute(2, 1, 0, 3)  # (9, M, B, N)
    ridge = constant((1, 0, 0, 1, 0, 1), moments.device, moments.dtype)[:, None, None, None]
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


class Triangulation(NamedTuple):
    """Joints of B rigs in T frames, under M camera hypotheses."""

    joints: Tensor  # (M, B, T, J, 3) mm
    covariance: Tensor  # (M, B, T, J, 3, 3) mm^2, given the cameras and the weights


class Reprojection(NamedTuple):
    """Where joints are seen under M camera hypotheses, (M, B, T, V, J) each."""

    error: Tensor  # (..., 2) normalised coordinates, less the keypoints'
    chi2: Tensor  # squared Mahalanobis length of the error
    depth: Tensor  # mm, at least `MIN_DEPTH`
    front: Tensor  # 1 in front of the view, else 0


def weighted_triangulation(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    weight: Tensor,
    depth: Tensor | float,
    prior_mean: Tensor,
    prior_precision: float | Tensor,
) -> Triangulation:
    """Triangulates every joint under every camera hypothesis, each keypoint with a weight.

    Args:
        observations: (B, T, V, J, ...). R, t: (M, B, V, 3, 3), (M, B, V, 3) mm.
        weight: (M or 1, B, T, V, J); one row serves all hypotheses.
        depth: mm, of the same shape or one number: reprojection errors are divided by it.
        prior_mean: mm, broadcast to (M or 1, B, T, J, 3).
        prior_precision: 1/mm^2, isotropic; one, or (B, T * J) where weight has one row.
    """
    M, B, V = R.shape[:3]
    T, J = observations.xy.shape[1], observations.xy.shape[3]
    scaled = observations.information * (weight / depth**2)[..., None, None]
    moments = ray_moments(observations.xy, scaled).transpose(-3, -2)  # (M or 1, B, T, J, V, 6)
    prior = prior_mean.expand(len(moments), B, T, J, 3).reshape(-1, T * J, 3)
    if len(moments) == 1 or M == 1:
        hypotheses = R, t
    else:  # every hypothesis is a rig of its own
        hypotheses = R.reshape(1, M * B, V, 3, 3), t.reshape(1, M * B, V, 3)
    moments = moments.reshape(-1, T * J, V, 6)
    points, entries, _ = triangulate(moments, *hypotheses, prior, prior_precision)
    covariance = symmetric_to_matrix(entries)  # (M, B, T J, 3, 3) or (1, M B, ...)
    return Triangulation(points.view(M, B, T, J, 3), covariance.view(M, B, T, J, 3, 3))


def reproject(joints: Tensor, observations: Observations, R: Tensor, t: Tensor) -> Reprojection:
    """Reprojection errors of joints (M, B, T, J, 3) mm under R, t (M, B, V, ...)."""
    camera = torch.einsum("mbvik,mbtjk->mbtvji", R, joints) + t[:, :, None, :, None]
    z = camera[..., 2]
    depth = z.clamp_min(MIN_DEPTH)
    error = camera[..., :2] / depth[..., None] - observations.xy
    chi2 = chi_square(error, observations.information)
    return Reprojection(error, chi2, depth, (z > MIN_DEPTH).to(depth))


def robust_joints(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    iterations: int = 8,
    cauchy: float = CAUCHY,
) -> tuple[Triangulation, Tensor]:
    """Robust triangulation with known cameras R (B, V, 3, 3), t (B, V, 3) mm.

    Every pair of views proposes a point; the one that all views like best starts iteratively
    reweighted least squares with Cauchy weights.

    Returns:
        (1, B, T, J, ...), NaN where fewer than two views see a joint; weights (1, B, T, V, J).
    """
    inlier = observations.inlier[None]
    seen = inlier > 0
    R, t, origin = R[None], t[None], torch.zeros_like(R[0, 0, 0, 0])

    def solve(weight: Tensor, depth: Tensor | float) -> Triangulation:
        return weighted_triangulation(
            observations, R, t, inlier * weight, depth, origin, PRIOR_SIGMA**-2
        )

    best = best_cost = None
    for pair in combinations(range(R.shape[2]), 2):
        chosen = tuple(int(view in pair) for view in range(R.shape[2]))
        mask = constant(chosen, R.device, R.dtype)[:, None]  # (V, 1)
        joints = solve(mask, START_DEPTH).joints
        at = reproject(joints, observations, R, t)
        loss = torch.log1p(at.chi2 / cauchy**2) + BEHIND * (1 - at.front)
        both = seen[..., pair[0], :] & seen[..., pair[1], :]  # (1, B, T, J)
        cost = torch.where(both, (inlier * loss).sum(-2), torch.inf)
        if best is None:
            best, best_cost = joints, cost
        better = cost < best_cost
        best = torch.where(better[..., None], joints, best)
        best_cost = torch.minimum(cost, best_cost)
    for _ in range(iterations):
        at = reproject(best, observations, R, t)
        weight = at.front / (1 + at.chi2 / cauchy**2)
        result = solve(weight, at.depth)
        best = result.joints
    enough = (seen.sum(-2) >= 2)[..., None]  # (1, B, T, J, 1)
    joints = torch.where(enough, best, torch.nan)
    covariance = torch.where(enough[..., None], result.covariance, torch.nan)
    return Triangulation(joints, covariance), torch.where(seen, weight, 0.0)


def robust_triangulation(
    keypoints: Keypoints, cameras: Cameras, iterations: int = 8, cauchy: float = CAUCHY
) -> tuple[Prediction, Tensor]:
    """The classical answer, without a posterior or a network: `robust_joints` of keypoints.

    Args:
        keypoints: (B, T, V, J, ...) px; NaN xy or zero confidence = not seen.
        cameras: K (B, T, V, 3, 3) px; R (B, V, 3, 3), t (B, V, 3) mm.
        iterations: of reweighting.
        cauchy: standard deviations at which an observation's weight is halved; infinity gives
            plain least squares of the reprojection error.

    Returns:
        Joints (B, T, J, 3) mm with covariance (B, T, J, 3, 3) mm^2 in the frame of R and t, NaN
        where fewer than two views see a joint; and weights (B, T, V, J) in [0, 1]. Float64.
    """
    observations = normalise(Keypoints(*(v.double() for v in keypoints)), cameras.K.double())
    result, weight = robust_joints(
        observations, cameras.R.double(), cameras.t.double(), iterations, cauchy
    )
    return Prediction(result.joints[0], result.covariance[0]), weight[0]
