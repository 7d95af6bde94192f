"""What a method says about a cell's cases, and how right it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.figures import mean, median, rms
from benchmark.rig.cases import Cases
from ptri.evaluation import metrics
from ptri.evaluation.metrics import LEVELS
from ptri.skeleton import H36M17
from ptri.structures import RigPosterior


class Answer(NamedTuple):
    """A method's answer to B cases; NaN where it has none. Any scale, unless it claims one."""

    R: Tensor  # (B, V, 3, 3)
    t: Tensor  # (B, V, 3)
    joints3d: Tensor  # (B, T, J, 3)
    covariance: Tensor | None = None  # (B, T, J, 3, 3) of the joints relative to the root
    posterior: RigPosterior | None = None
    accepted: Tensor | None = None  # (B,) bool
    metric: bool = False  # lengths are claimed to be mm
    seconds: float = 0.0  # for all B


def score(cases: Cases, answer: Answer) -> dict[str, np.ndarray]:
    """Errors and coverage of B cases, arrays with leading B.

    ``rotation_deg`` (B, P) of every pair; ``n_mpjpe`` (B,) mm, root-relative after one scale per
    case, of joints that the images decide (`_counted`); ``scale`` (B,) relative; ``coverage_R``
    (B, V-1, 2) and ``coverage_x`` (B, 2) of the 50 and 90 % regions; ``accepted``, ``ess`` (B,).
    """
    truth = cases.cameras
    values = {
        "rotation_deg": metrics.rotation_error_deg(answer.R, truth.R),
        "direction_deg": metrics.translation_direction_error_deg(
            answer.R, answer.t, truth.R, truth.t
        ),
    }
    error, scale = _structure(cases, answer.joints3d)
    values["n_mpjpe"] = error
    if answer.metric:
        values["scale"] = (1 / scale - 1).abs()
    if answer.posterior is not None:
        values["coverage_R"] = metrics.rotation_coverage(answer.posterior, truth.R)
        values["ess"] = answer.posterior.ess
    if answer.covariance is not None:
        counted = _counted(cases)
        joints = torch.where(counted[..., None], cases.joints3d, torch.nan)
        share = metrics.joint_coverage(answer.joints3d, answer.covariance, joints)  # (B, T, 2)
        values["coverage_x"] = share.nanmean(1)
    if answer.accepted is not None:
        values["accepted"] = answer.accepted.double()
    result = {name: value.detach().double().cpu().numpy() for name, value in values.items()}
    result["seconds"] = np.full(len(truth.R), answer.seconds / len(truth.R))
    return result


def _counted(cases: Cases) -> Tensor:
    """(B, T, J) joints that count: they and their frame's root are decided by the images.

    That is, clean views outnumber those with a gross outlier by two or more; with two clean views
    and a third elsewhere, even the true cameras cannot tell which two agree by chance.
    """
    seen = cases.keypoints.confidence > 0
    wild = (seen & ~cases.clean).sum(2)
    fixed = cases.clean.sum(2) >= wild + 2
    return fixed & fixed[..., H36M17.root, None]


def _structure(cases: Cases, joints: Tensor) -> tuple[Tensor, Tensor]:
    """Mean root-relative error (B,) mm after one scale per case, and that scale (B,)."""
    root = H36M17.root
    counted = _counted(cases)
    counted[..., root] = False
    g = cases.joints3d - cases.joints3d[..., root : root + 1, :]
    e = joints - joints[..., root : root + 1, :]
    missing = (counted & ~torch.isfinite(e).all(-1)).any((1, 2))  # (B,) it had to answer
    keep = counted & torch.isfinite(e).all(-1)
    g, e = (torch.where(keep[..., None], x, torch.zeros_like(x)) for x in (g, e))
    scale = _best_scale(e, g, keep)
    error = (scale[:, None, None, None] * e - g).norm(dim=-1).sum((1, 2)) / keep.sum((1, 2))
    none = counted.sum((1, 2)) == 0
    error = torch.where(missing, torch.inf, torch.where(none, torch.nan, error))
    return error, torch.where(missing | none, torch.nan, scale)


def _best_scale(e: Tensor, g: Tensor, keep: Tensor) -> Tensor:
    """The scale (B,) that brings e nearest to g in the mean distance, which is what is measured.

    Reweighted least squares (Weiszfeld); one joint metres away must not set it.

    Args:
        e, g: (B, T, J, 3). keep: (B, T, J) bool.
    """
    # 1e-12 guards a structure that has shrunk to a point.
    ratio = (g.norm(dim=-1) / e.norm(dim=-1).clamp_min(1e-12)).masked_fill(~keep, torch.nan)
    scale = ratio.flatten(1).nanmedian(1).values.nan_to_num(1.0)
    for _ in range(20):
        distance = (scale[:, None, None, None] * e - g).norm(dim=-1)
        weight = keep / distance.clamp_min(1e-3)  # 1e-3 mm guards joints that fit exactly
        above = (weight * (e * g).sum(-1)).sum((1, 2))
        scale = above / (weight * e.square().sum(-1)).sum((1, 2)).clamp_min(1e-12)
    return scale


# --- summaries -------------------------------------------------------------------------------


def flatten(
    scores: dict[str, np.ndarray],
    bound_deg: np.ndarray | None = None,
    ceiling: np.ndarray | None = None,
    bound_body_deg: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Scores as arrays that cells with other numbers of views can be appended to.

    Args:
        scores: of `score`. bound_deg: (B, P) Cramer-Rao bound of the pairs, RMS deg.
        ceiling: (B,) mm, ``n_mpjpe`` with the true cameras. bound_body_deg: as ``bound_deg``, of
            one who knows the body prior.
    """
    angle = np.where(np.isfinite(scores["rotation_deg"]), scores["rotation_deg"], 180.0)
    flat = {"angle": angle.ravel(), "worst": angle.max(1)}
    kept = ("n_mpjpe", "seconds", "scale", "ess", "accepted")
    flat |= {name: scores[name] for name in kept if name in scores}
    bounds = {"bound": bound_deg, "bound_body": bound_body_deg}
    flat |= {name: limit.ravel() for name, limit in bounds.items() if limit is not None}
    if ceiling is not None:
        flat["over_ceiling"] = scores["n_mpjpe"] / ceiling
    for name in ("coverage_R", "coverage_x"):
        if name in scores:
            columns = scores[name].reshape(-1, len(LEVELS)).T
            flat |= {f"{name}{100 * level:.0f}": c for level, c in zip(LEVELS, columns)}
    return flat


def pool(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores of several parts or cells as one; fields that all of them have."""
    names = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {name: np.concatenate([part[name] for part in parts]) for name in sorted(names)}


def summarise(flat: dict[str, np.ndarray]) -> dict[str, float]:
    """Figures of flat scores; NaN where there is nothing to count."""
    angle, failed = flat["angle"], flat["angle"] > metrics.FAILURE_DEG
    figures = {
        "median_deg": median(angle),
        "rms_deg": rms(angle),
        "failures": mean(failed),
        "failed_rigs": mean(flat["worst"] > metrics.FAILURE_DEG),
        "n_mpjpe": median(flat["n_mpjpe"]),
        "ms": 1000 * mean(flat["seconds"]),
        "cases": len(flat["worst"]),
    }
    if "bound" in flat:
        ratio = angle / flat["bound"]
        figures["bound_deg"] = rms(flat["bound"])
        figures["over_bound"] = rms(ratio)
        # Without the pairs that failed, which decide a mean square alone.
        figures["over_bound_kept"] = rms(ratio[~failed])
    if "bound_body" in flat:
        figures["bound_body_deg"] = rms(flat["bound_body"])
    for name in ("over_ceiling", "scale", "ess"):
        if name in flat:
            figures[name] = median(flat[name])
    for name in flat:
        if name.startswith("coverage"):
            figures[name] = mean(flat[name])
    if "accepted" in flat:
        bad, rejected = flat["worst"] > metrics.FAILURE_DEG, flat["accepted"] < 0.5
        figures["bad_rigs"] = int(bad.sum())
        figures["flagged"] = mean(rejected[bad])
        figures["rejected_good"] = mean(rejected[~bad])
    return figures
