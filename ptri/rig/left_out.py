"""Rigs with one view that fits nowhere: what the other views say without it.

Such a rig stays rejected. Its other cameras are solved again without the view, from where they are,
and that answer is taken only if it lies outside the region first stated for them: then the view had
bent them. The view itself gets the pose that the others' joints give it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.cameras import to_reference
from ptri.geometry.resection import Points, orthographic_starts, resect, square_root
from ptri.geometry.rotations import rotation_angle
from ptri.posterior.adjust import Bundle
from ptri.posterior.sampling import RigSolution, posterior_mean, rig_posterior
from ptri.structures import Cameras, Observations, RigPosterior, take
from ptri.verdict.figures import spread_deg
from ptri.verdict.verdict import Code, Verdict

# Radius of a rotation's 90 % region over the root mean square of its angle (chi-square with three
# degrees of freedom, 6.25, over its mean).
REGION_90 = (6.25 / 3) ** 0.5
NUM_STEPS = 10  # Levenberg-Marquardt, of the view's resection


def without_misfits(
    solution: RigSolution,
    verdicts: list[Verdict],
    options: PosteriorConfig,
    seed: int,
    frame_worth: float,
) -> RigSolution:
    """The solution of B rigs; those with a misfit are solved without it where it matters."""
    V = solution.posterior.R.shape[2]
    for rig, verdict in enumerate(verdicts):
        if verdict.code is Code.MISFIT and V > 2:
            rows = torch.tensor([rig], device=solution.posterior.R.device)
            posterior = _without(solution, rows, verdict.view, options, seed, frame_worth)
            if posterior is not None:
                whole = solution.posterior.with_rigs(rows, posterior)
                solution = solution._replace(posterior=whole)
    return solution


@torch.no_grad()
def _without(
    solution: RigSolution,
    rows: Tensor,
    view: int,
    options: PosteriorConfig,
    seed: int,
    frame_worth: float,
) -> RigPosterior | None:
    """The posterior of one rig without a view; None where the others hardly move."""
    evidence = solution.evidence
    observations, joints = take(evidence.observations, rows), evidence.joints[rows]
    V = observations.xy.shape[2]
    others = [v for v in range(V) if v != view]
    posterior = solution.posterior.rigs(rows)
    R, t = posterior_mean(posterior)
    # The others, in the frame of the first of them.
    cameras = to_reference(Cameras(R, R[:, others], t[:, others]))
    first_R, first_t = R[:, others[0]], t[:, others[0]]
    lengths = evidence.expansions[0].shared[rows, : len(evidence.body.mean)]
    moved = joints @ first_R.mT[:, None] + first_t[:, None, None]
    starts = Bundle(*(value[:, None] for value in (cameras.R, cameras.t, moved, lengths)))
    part = observations._replace(
        xy=observations.xy[:, :, others],
        information=observations.information[:, :, others],
        inlier=observations.inlier[:, :, others],
    )
    again = rig_posterior(part, starts, evidence.body, options, seed, frame_worth=frame_worth)
    new_R, _ = posterior_mean(again.posterior)
    angle = torch.rad2deg(rotation_angle(new_R @ cameras.R.mT))  # (1, V - 1), to the first
    region = REGION_90 * spread_deg(posterior)[0][:, others[0], others]
    if not bool((angle > region).any()):
        return None
    # x_view = R x_first + t, where the view was thought to be.
    start = to_reference(Cameras(R, R[:, [others[0], view]], t[:, [others[0], view]]))
    view_R, view_t = _resected(observations, view, again.evidence.joints, start)
    M = len(again.posterior.R)
    every_R, every_t = R.new_empty(M, 1, V, 3, 3), t.new_empty(M, 1, V, 3)
    every_R[:, :, others], every_t[:, :, others] = again.posterior.R, again.posterior.t
    every_R[:, :, view], every_t[:, :, view] = view_R, view_t
    cameras = to_reference(Cameras(every_R, every_R, every_t))
    return again.posterior._replace(R=cameras.R, t=cameras.t)


def _resected(
    observations: Observations, view: int, joints: Tensor, start: Cameras
) -> tuple[Tensor, Tensor]:
    """The pose (3, 3), (3,) mm of a view in the frame of joints (1, T, J, 3) that are known."""
    root = square_root(observations.information[:, :, view].flatten(1, 2))
    points = Points(
        joints.flatten(1, 2), observations.xy[:, :, view].flatten(1, 2), root,
        observations.inlier[:, :, view].flatten(1, 2),
    )  # fmt: skip
    starts = [(start.R[:, 1], start.t[:, 1]), *zip(*orthographic_starts(points))]
    best = min((resect(points, *one, NUM_STEPS) for one in starts), key=lambda p: float(p.cost))
    return best.R[0], best.t[0]
