"""Errors of joints, cameras and keypoints, and the coverage of stated uncertainties.

The functions of joints and cameras return one value per sample (or per joint, pair, view as
stated) and leave joints that are NaN in either argument out of a sample's mean. Those of keypoints
in single images, at the end, average over all joints given.
"""

from __future__ import annotations

from itertools import combinations

import roma
import torch
from scipy.stats import chi2, mannwhitneyu
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.rotations import rotation_angle, rotation_mean, so3_log
from ptri.skeleton import H36M17
from ptri.structures import RigPosterior, constant

LEVELS = (0.5, 0.9)  # of the regions whose coverage is measured
FAILURE_DEG = 10.0  # a pair of views whose rotation is farther off has failed


# --- joints ----------------------------------------------------------------------------------


def mpjpe(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean per-joint position error after moving both roots to the origin; no other alignment.

    Args:
        estimate, truth: (..., 17, 3) mm.

    Returns:
        (...,) mm, the mean over all joints (the root's own zero included, as is usual).
    """
    return joint_l2(about_root(estimate), about_root(truth))


def n_mpjpe(estimate: Tensor, truth: Tensor) -> Tensor:
    """Root-relative error (...,) mm after the best scale (Rhodin et al., CVPR 2018).

    The scale minimises the squared error, ``s = sum <e, g> / sum <e, e>``. So N-MPJPE <= MPJPE
    holds for the root mean square; for the mean it can be broken by a small margin.
    """
    estimate, truth = about_root(estimate), about_root(truth)
    valid = _valid(estimate, truth)
    e, g = _zeroed(estimate, valid), _zeroed(truth, valid)
    # 1e-9 mm^2 guards an estimate whose joints all lie on the root.
    scale = (e * g).sum((-1, -2)) / e.square().sum((-1, -2)).clamp_min(1e-9)
    return joint_l2(scale[..., None, None] * estimate, truth)


def pa_mpjpe(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean error (...,) mm after the best similarity (Umeyama, PAMI 1991).

    The similarity is a proper rotation, scale and translation. NaN where all of an estimate's
    joints coincide, which no scale moves onto the truth.
    """
    valid = _valid(estimate, truth)
    source, target = _zeroed(estimate, valid), _zeroed(truth, valid)
    weights = (valid | ~valid.any(-1, keepdim=True)).to(source)  # no NaN for the SVD
    R, t, scale = roma.rigid_points_registration(source, target, weights, compute_scaling=True)
    aligned = scale[..., None, None] * estimate @ R.mT + t.unsqueeze(-2)
    return joint_l2(aligned, truth)


def joint_l1(estimate: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean absolute coordinate difference over joints, (...,); any number of coordinates.

    Args:
        estimate, truth: (..., J, D). valid: (..., J) bool, joints that count; None: all finite.
    """
    finite = _valid(estimate, truth)
    valid = finite if valid is None else finite & valid
    return _masked_mean((estimate - truth).abs().mean(-1), valid)


def joint_l2(estimate: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over joints of the Euclidean distance, (...,); arguments as `joint_l1`."""
    finite = _valid(estimate, truth)
    valid = finite if valid is None else finite & valid
    return _masked_mean((estimate - truth).norm(dim=-1), valid)


# --- cameras ---------------------------------------------------------------------------------


def view_pairs(num_views: int) -> list[tuple[int, int]]:
    """Every pair (i, j), i < j, in the order in which the pair functions return them."""
    return list(combinations(range(num_views), 2))


def relative_pose(R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Poses of view j relative to view i of every pair: ``x_j = R_ij x_i + t_ij``.

    Args:
        R: (..., V, 3, 3). t: (..., V, 3).

    Returns:
        (..., P, 3, 3) and (..., P, 3) with P = V (V - 1) / 2.
    """
    first, second = (constant(part, R.device) for part in zip(*view_pairs(R.shape[-3])))
    R_pair = R[..., second, :, :] @ R[..., first, :, :].transpose(-1, -2)
    t_pair = t[..., second, :] - (R_pair @ t[..., first, :].unsqueeze(-1)).squeeze(-1)
    return R_pair, t_pair


def rotation_error_deg(R: Tensor, R_true: Tensor) -> Tensor:
    """Angle of the relative rotation's error of every pair of views, (..., P) deg."""
    zero = R.new_zeros(R.shape[:-1])
    pair, _ = relative_pose(R, zero)
    pair_true, _ = relative_pose(R_true, zero)
    return torch.rad2deg(rotation_angle(pair.transpose(-1, -2) @ pair_true))


def translation_direction_error_deg(R: Tensor, t: Tensor, R_true: Tensor, t_true: Tensor) -> Tensor:
    """Angle between estimated and true baseline of every pair, (..., P) deg.

    The baseline is the relative translation in the second view's frame, so it needs no scale; NaN
    where the two true cameras coincide.
    """
    _, a = relative_pose(R, t)
    _, b = relative_pose(R_true, t_true)
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))
    return torch.where(b.norm(dim=-1) > 0, torch.rad2deg(angle), torch.nan)


def failures(error_deg: Tensor) -> Tensor:
    """Pairs that failed, bool: more than `FAILURE_DEG` off, or not finite."""
    return ~(error_deg <= FAILURE_DEG)


# --- coverage --------------------------------------------------------------------------------


def joint_coverage(estimate: Tensor, covariance: Tensor, truth: Tensor) -> Tensor:
    """Share of joints whose truth lies in the stated region of each of `LEVELS`, root-relative.

    The region of a joint is the ellipsoid ``e^T C^-1 e <= chi2_3(level)`` with e the error of the
    root-relative joint and C the joint's covariance. The root itself does not count.

    Args:
        estimate, truth: (..., 17, 3) mm. covariance: (..., 17, 3, 3) mm^2 of root-relative joints.

    Returns:
        (..., L) in [0, 1].
    """
    error = about_root(estimate) - about_root(truth)
    square = mahalanobis_square(error, covariance)  # (..., J)
    counts = torch.isfinite(error).all(-1)
    counts[..., H36M17.root] = False
    inside = [square <= chi2.ppf(level, 3) for level in LEVELS]
    return torch.stack([_masked_mean(part.to(estimate), counts) for part in inside], -1)


def mahalanobis_square(error: Tensor, covariance: Tensor) -> Tensor:
    """``e^T C^-1 e`` (...,) of errors (..., D) under covariances (..., D, D).

    A covariance that is not positive definite holds nothing: infinity.
    """
    chol, info = torch.linalg.cholesky_ex(covariance)
    bad = (info != 0) | ~torch.isfinite(chol).all((-1, -2))
    eye = torch.eye(error.shape[-1], dtype=error.dtype, device=error.device)
    chol = torch.where(bad[..., None, None], eye, chol)
    white = torch.linalg.solve_triangular(chol, error.unsqueeze(-1), upper=False).squeeze(-1)
    return torch.where(bad, torch.inf, white.square().sum(-1))


def rotation_level(posterior: RigPosterior, R_true: Tensor) -> Tensor:
    """Level of the smallest region of the posterior that holds each view's true rotation.

    The region is made of samples: in the tangent space at the weighted mean, ellipsoids of the
    weighted sample covariance are ordered by their Mahalanobis distance, and the level is the
    weight of the samples nearer than the truth. Unlike a chi-square level it asks nothing of the
    tails. Relative to view 0, which has no error of its own.

    Args:
        posterior: M samples of B rigs. R_true: (B, V, 3, 3) relative to view 0.

    Returns:
        (B, V - 1) in [0, 1], float64; NaN where there are too few samples for an ellipsoid.
    """
    R = posterior.R[:, :, 1:].double()  # (M, B, V-1, 3, 3)
    if len(R) < 8:  # cannot span an ellipsoid
        return R.new_full((*R_true.shape[:-3], R_true.shape[-3] - 1), torch.nan)
    truth = R_true[:, 1:].double()
    weights = posterior.log_weights.double().exp()[..., None].expand(R.shape[:3])
    mean = rotation_mean(R, weights)
    inverse = mean.transpose(-1, -2)
    offset = so3_log(inverse @ R)  # (M, B, V-1, 3)
    error = so3_log(inverse @ truth)  # (B, V-1, 3)
    covariance = torch.einsum("mbv,mbvi,mbvj->bvij", weights, offset, offset)
    # (1e-6 rad)^2 guards samples that all agree to rounding.
    covariance = covariance + 1e-12 * torch.eye(3, dtype=covariance.dtype, device=R.device)
    of_samples = mahalanobis_square(offset, covariance.expand(R.shape[0], *covariance.shape))
    of_truth = mahalanobis_square(error, covariance)
    return (weights * (of_samples < of_truth)).sum(0)


def rotation_coverage(posterior: RigPosterior, R_true: Tensor) -> Tensor:
    """Whether each view's true rotation lies in the posterior's region of each of `LEVELS`.

    Args:
        posterior, R_true: see ``rotation_level``.

    Returns:
        (B, V - 1, L), 1 or 0; NaN where ``rotation_level`` is.
    """
    level = rotation_level(posterior, R_true).unsqueeze(-1)
    inside = (level <= level.new_tensor(LEVELS)).to(R_true)
    return inside.masked_fill(torch.isnan(level), torch.nan)


# --- keypoints of single images --------------------------------------------------------------


def mirrored(xy: Tensor, truth: Tensor, visible: Tensor, apart: float) -> dict[str, Tensor]:
    """Which joints have a mirror joint more than ``apart`` px away, and which lie nearer to it.

    Joints whose truth, or whose mirror joint's, is NaN have none.
    """
    mirror = constant(H36M17.flip, truth.device)
    other = truth[:, mirror]
    paired = ((other - truth).norm(dim=-1) > apart) & visible
    swapped = paired & ((xy - other).norm(dim=-1) < (xy - truth).norm(dim=-1))
    return {"paired": paired, "swapped": swapped}


def joint_metrics(
    error: Tensor,
    absolute: Tensor,
    square: Tensor,
    confidence: Tensor,
    found: Tensor,
    visible: Tensor,
    known: Tensor,
    paired: Tensor,
    swapped: Tensor,
) -> dict[str, float]:
    """Numbers over all visible joints, from what `detection_losses` says of each.

    Returns:
        "x2d/l1" and "x2d/l2", the mean of ``absolute`` and ``error`` (px); "x2d/median" (px);
        "x2d/pck", the share found; "x2d/swapped", the share of joints nearer to the mirror joint's
        truth, of those more than two `CONFIDENCE_RADIUS` away from it; "coverage_50",
        "coverage_90" of the error ellipses; "confidence/gap", the expected calibration error of the
        confidence over all joints whose truth is known; "confidence/auc", how often a found joint
        is more confident than a lost one.
    """
    if not visible.any():
        raise UserError("data: no joint lies inside any test image; check the labels and boxes")
    metrics = {
        "x2d/l1": float(absolute[visible].double().mean()),
        "x2d/l2": float(error[visible].double().mean()),
        "x2d/median": float(error[visible].median()),
        "x2d/pck": float(found[visible].double().mean()),
        "x2d/swapped": float(swapped.sum() / paired.sum().clamp_min(1)),
    }
    for level in LEVELS:
        inside = square[visible] <= chi2.ppf(level, 2)
        metrics[f"coverage_{100 * level:.0f}"] = float(inside.double().mean())
    metrics["confidence/gap"] = calibration_gap(confidence[known], found[known])
    metrics["confidence/auc"] = ranking(confidence[visible], found[visible])
    return metrics


def calibration_gap(confidence: Tensor, happened: Tensor, bins: int = 10) -> float:
    """Expected calibration error: |confidence - frequency|, the mean over equally filled bins."""
    order = confidence.argsort()
    gap = (confidence - happened.to(confidence)).double()[order]
    parts = torch.tensor_split(gap, min(bins, len(gap)))
    return float(sum(part.sum().abs() for part in parts) / len(gap))


def ranking(confidence: Tensor, happened: Tensor) -> float:
    """Area under the ROC curve: 0.5 says nothing, 1 is perfect; 0.5 where all or none happened."""
    yes, no = (confidence[mask].cpu().numpy() for mask in (happened, ~happened))
    if not len(yes) or not len(no):
        return 0.5
    pairs = mannwhitneyu(yes, no, method="asymptotic").statistic  # in the right order
    return float(pairs) / (len(yes) * len(no))


# --- helpers ---------------------------------------------------------------------------------


def about_root(joints: Tensor) -> Tensor:
    """Joints (..., 17, D) with the root at the origin."""
    return joints - joints[..., H36M17.root, None, :]


def _valid(a: Tensor, b: Tensor) -> Tensor:
    return torch.isfinite(a).all(-1) & torch.isfinite(b).all(-1)


def _zeroed(points: Tensor, valid: Tensor) -> Tensor:
    return points.masked_fill(~valid.unsqueeze(-1), 0.0)


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the last dimension of the values that count; NaN where none does."""
    total = values.masked_fill(~valid, 0.0).sum(-1)
    return total / torch.where(valid.any(-1), valid.sum(-1), torch.nan)
