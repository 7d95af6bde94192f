"""Rigs of which a view is left out: it fits nowhere, or it saw next to nothing.

A rig with a view that fits nowhere stays rejected. Its other cameras are solved again without the
view, from where they are, and that answer is taken only if it lies outside the region first stated
for them: then the view had bent them. The view itself gets the pose that the others' joints give
it. A view that saw next to nothing gets cameras drawn from what they could be, so that an estimate
is always whole and says so.
"""

from __future__ import annotations

import math

import numpy as np
import roma
import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.cameras import to_reference, transform
from ptri.geometry.rays import refocused
from ptri.geometry.resection import (
    Points,
    nearby_poses,
    orthographic_starts,
    resect,
    square_root,
)
from ptri.geometry.rotations import rotation_angle
from ptri.posterior.equations import Bundle
from ptri.posterior.moments import mean_views, posterior_mean, resample
from ptri.posterior.optima import Poses
from ptri.posterior.prior import of_views
from ptri.posterior.sampling import RigSolution, rig_posterior
from ptri.rig.check import RigInput
from ptri.structures import Cameras, Observations, RigPosterior, take
from ptri.verdict.figures import spread_deg
from ptri.verdict.verdict import Code, Verdict

# Radius of a rotation's 90 % region over the root mean square of its angle (chi-square with three
# degrees of freedom, 6.25, over its mean).
REGION_90 = (6.25 / 3) ** 0.5
NUM_STEPS = 10  # Levenberg-Marquardt, of the view's resection
# A camera that nothing is known about: its rotation is anything, its place this far (mm, standard
# deviation a coordinate) from the reference.
UNKNOWN_SIGMA = 5000.0


def without_misfits(
    solution: RigSolution,
    verdicts: list[Verdict],
    options: PosteriorConfig,
    seed: int,
    worth: float | None,
    poses: Poses,
) -> RigSolution:
    """The solution of B rigs; those with a misfit are solved without it where it matters."""
    V = solution.posterior.R.shape[2]
    for rig, verdict in enumerate(verdicts):
        if verdict.code is Code.MISFIT and V > 2:
            rows = torch.tensor([rig], device=solution.posterior.R.device)
            posterior = _without(
                solution, rows, verdict.view, options, seed, worth, take(poses, rows)
            )
            if posterior is not None:
                merged = solution.posterior.with_rigs(rows, posterior)
                solution = solution._replace(posterior=merged)
    return solution


@torch.no_grad()
def _without(
    solution: RigSolution,
    rows: Tensor,
    view: int,
    options: PosteriorConfig,
    seed: int,
    worth: float | None,
    poses: Poses,
) -> RigPosterior | None:
    """The posterior of one rig without a view; None where the others hardly move.

    Args:
        poses: of the rig's views.
    """
    evidence = solution.evidence
    observations, joints = take(evidence.observations, rows), evidence.joints[rows]
    V = observations.xy.shape[2]
    others = [v for v in range(V) if v != view]
    posterior = solution.posterior.rigs(rows)
    R, t = posterior_mean(posterior)
    # The others, in the frame of the first of them.
    cameras = to_reference(Cameras(R, R[:, others], t[:, others]))
    moved = transform(joints, R[:, others[:1]], t[:, others[:1]])
    lengths = evidence.best.shared[rows, : len(evidence.body.mean)]
    _, _, log_focal = mean_views(posterior.views, posterior.log_weights.exp())
    F, prior = log_focal.shape[-1], take(evidence.best.errors.prior, rows[0])
    if F:
        covariance = torch.linalg.inv(prior.focal)
        prior = prior._replace(focal=torch.linalg.inv(covariance[others][:, others]))
    prior = prior._replace(poses=of_views(prior.poses, others))
    chosen = log_focal[:, others if F else []]
    parts = (cameras.R, cameras.t, chosen, moved, lengths)
    starts = Bundle(*(value[:, None] for value in parts))
    seen = (value[:, :, others] for value in observations[:3])
    part = Observations(*seen, observations.held, observations.persons)
    poses = take(poses, np.s_[:, :, others])
    again = rig_posterior(part, starts, evidence.body, options, seed, poses, worth, prior.if_any())
    new_R, _ = posterior_mean(again.posterior)
    angle = torch.rad2deg(rotation_angle(new_R @ cameras.R.mT))  # (1, V - 1), to the first
    # What the others say of themselves: the misfit widens the rig as a whole.
    usual = posterior._replace(R=solution.usual[:, rows])
    region = REGION_90 * spread_deg(usual)[0][:, others[0], others]
    if not bool((angle > region).any()):
        return None
    # x_view = R x_first + t, where the view was thought to be.
    start = to_reference(Cameras(R, R[:, [others[0], view]], t[:, [others[0], view]]))
    M, scale2 = len(again.posterior.R), again.evidence.scale2
    noise = torch.randn(M, 1, 6, generator=torch.Generator().manual_seed(seed), dtype=t.dtype)
    view_R, view_t = _resected(
        refocused(observations, log_focal),
        view,
        again.evidence.joints,
        start,
        scale2,
        noise.to(t.device),
    )
    all_R, all_t = R.new_empty(M, 1, V, 3, 3), t.new_empty(M, 1, V, 3)
    all_R[:, :, others], all_t[:, :, others] = again.posterior.R, again.posterior.t
    all_R[:, :, view], all_t[:, :, view] = view_R, view_t
    cameras = to_reference(Cameras(all_R, all_R, all_t))
    # The view's own: as they were before, one for each of the new samples.
    all_focal = resample(posterior, M).log_focal
    all_focal = all_focal.repeat(-(-M // len(all_focal)), 1, 1)[:M].clone()
    all_focal[..., others if F else []] = again.posterior.log_focal
    return again.posterior._replace(R=cameras.R, t=cameras.t, log_focal=all_focal)


def _resected(
    observations: Observations,
    view: int,
    joints: Tensor,
    start: Cameras,
    scale2: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Poses (M, 1, 3, 3), (M, 1, 3) mm of a view in the frame of joints (1, T, J, 3) that are
    known, drawn from what its keypoints say.

    Args:
        scale2: (1,) squared factor on the stated noise. noise: (M, 1, 6) standard normal.
    """
    xy, information, inlier = (value[:, :, view].flatten(1, 2) for value in observations[:3])
    information = information / scale2.clamp_min(1.0)[:, None, None, None]
    points = Points(joints.flatten(1, 2), xy, square_root(information), inlier)
    starts = [(start.R[:, 1], start.t[:, 1]), *zip(*orthographic_starts(points))]
    poses = (resect(points, R, t, NUM_STEPS) for R, t in starts)
    return nearby_poses(points, min(poses, key=lambda pose: float(pose.cost)), noise)


def with_unknown(
    posterior: RigPosterior | None,
    views: list[int],
    given: RigInput,
    num_samples: int,
    seed: int,
) -> RigPosterior:
    """The posterior (B = 1) of some views with all of the rig's, in view 0's frame.

    Args:
        posterior: of ``views``; None: of no view.
        given: of all views; its K gives the type and the device.
        num_samples: where there is no posterior.

    Returns:
        The other views' cameras are draws from what they could be.
    """
    M, V = num_samples if posterior is None else len(posterior.R), given.K.shape[1]
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(M, V, 4, generator=generator, dtype=torch.float64)
    t = UNKNOWN_SIGMA * torch.randn(M, V, 3, generator=generator, dtype=torch.float64)
    R, t = roma.unitquat_to_rotmat(q / q.norm(dim=-1, keepdim=True)).to(given.K), t.to(given.K)
    log_focal = t.new_zeros(M, 1, 0)
    if given.focal is not None:
        root = given.focal[:1].sum(0)  # of no frames: zeros
        normal = torch.randn(M, root.shape[1], generator=generator, dtype=torch.float64)
        log_focal = (normal.to(root) @ root.mT).unsqueeze(1)
    log_weights, ess = t.new_full((M, 1), -math.log(M)), t.new_ones(1)
    if posterior is not None:
        R[:, views], t[:, views] = posterior.R[:, 0], posterior.t[:, 0]
        log_weights, ess = posterior.log_weights, posterior.ess
        log_focal[..., views if log_focal.shape[-1] else []] = posterior.log_focal
    cameras = to_reference(Cameras(R, R, t))
    R, t = cameras.R.clone(), cameras.t.clone()
    R[:, 0], t[:, 0] = torch.eye(3).to(R), 0.0
    return RigPosterior(R[:, None], t[:, None], log_weights, ess, log_focal)
