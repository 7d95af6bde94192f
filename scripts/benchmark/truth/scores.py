"""What is stated of a solved case, beside its truth."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from benchmark.truth.cases import Case
from benchmark.truth.plain import cauchy, optimum
from ptri.config import PosteriorConfig
from ptri.evaluation import metrics
from ptri.geometry.rotations import so3_log
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_from_cameras, posterior_mean
from ptri.rig.check import known_joints
from ptri.rig.estimate import solve_cameras
from ptri.rig.joints import body_under
from ptri.rig.result import with_joints
from ptri.skeleton import H36M17
from ptri.structures import Cameras, take

MAX_FRAMES = 50  # that a rig is solved from, as `ptri.estimate_rig` takes them

Scores = dict[str, np.ndarray]


@torch.no_grad()
def score(
    model: PoseModel, case: Case, options: PosteriorConfig, seed: int, verdict_only: bool = False
) -> Scores:
    """Solves a case as `ptri.estimate_rig` does, with what is known of its detector.

    Args:
        verdict_only: leave out regions, joints and the plain solves.

    Returns:
        ``angle`` (P,) deg, error of every pair of views; ``code`` of the verdict and ``view`` that
        it names, or -1, (); ``good`` (V,) as of the case. Unless ``verdict_only`` also ``level`` (V
        - 1,) of the smallest region of the posterior that holds a view's true rotation relative to
        view 0; ``square`` (V - 1,) its squared Mahalanobis distance by the posterior's covariance;
        ``width`` (V - 1,) deg, the stated standard deviation of its angle; ``away`` (V - 1,) deg,
        its error; ``joints`` (T J,) and ``body`` (T 17,) levels of the regions of joints that hold
        their truths (as triangulated; fused and about the root), NaN = no truth; ``mpjpe`` and
        ``calibrated`` (), mm, of fused joints; ``plain_angle``, ``cauchy_angle`` (P,) and
        ``plain_away`` (V - 1,) deg, of the two plain solves.
    """
    model.detector = case.known
    given = case.given()
    solved = solve_cameras(model, given, options, seed, MAX_FRAMES)
    verdict, truth = solved.verdict, case.cameras.R.double()
    R = posterior_mean(solved.posterior)[0][0]
    code = {"code": np.array(verdict.code.name)}
    values = {
        "angle": metrics.rotation_error_deg(R, truth),
        "view": torch.tensor(-1 if verdict.view is None else verdict.view),
        "good": case.good,
    }
    if verdict_only:
        return code | _arrays(values)
    estimate = with_joints(model, solved, given)
    error = so3_log(estimate.R.mT @ truth)[1:]  # (V - 1, 3)
    covariance = estimate.rotation_cov[1:]
    plain_R, plain_t = optimum(model, given, options, seed)
    known, K = take((known_joints(given), given.K), None)
    true_rig = Cameras(K, truth[None], case.cameras.t[None].double())
    calibrated = body_under(model, known, K, posterior_from_cameras(true_rig)).joints3d[0]
    fused = metrics.about_root(estimate.body.joints3d) - metrics.about_root(case.joints)
    fused[:, H36M17.root] = torch.nan
    values |= {
        "level": metrics.rotation_level(estimate.posterior, truth[None])[0],
        "square": metrics.mahalanobis_square(error, covariance),
        "width": torch.rad2deg(covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()),
        "away": torch.rad2deg(error.norm(dim=-1)),
        "joints": _level(estimate.joints3d - case.own_joints, estimate.joints3d_covariance),
        "body": _level(fused, estimate.body.covariance),
        "mpjpe": metrics.mpjpe(estimate.body.joints3d, case.joints).nanmean(),
        "calibrated": metrics.mpjpe(calibrated, case.joints).nanmean(),
        "plain_angle": metrics.rotation_error_deg(plain_R, truth),
        "plain_away": torch.rad2deg(so3_log(plain_R.mT @ truth)[1:].norm(dim=-1)),
        "cauchy_angle": metrics.rotation_error_deg(cauchy(case, given, plain_R, plain_t), truth),
    }
    return code | _arrays(values)


def _level(error: Tensor, covariance: Tensor) -> Tensor:
    """Levels (T J,) of the ellipsoids that errors (T, J, 3) lie on; NaN where they are."""
    square = metrics.mahalanobis_square(error, covariance).flatten().double().numpy()
    known = torch.isfinite(error).all(-1).flatten().numpy()
    return torch.from_numpy(np.where(known, chi2.cdf(square, 3), math.nan))


def _arrays(values: dict[str, Tensor]) -> Scores:
    return {name: value.double().numpy() for name, value in values.items()}
