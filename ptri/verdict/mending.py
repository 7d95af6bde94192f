"""Solving a rig again in spite of one bad view: read anew, or left out.

`ptri.verdict.judge` names the view and, where there is one, the reading under
which it fits the others.
A view that was read wrongly is read anew: labels exchanged, image mirrored, or frames shifted. One
that fits nowhere is left out; its own pose is then anything, and the samples say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.posterior.adjust import Bundle
from ptri.posterior.body import BodyPrior
from ptri.posterior.modes import evidence_at
from ptri.posterior.sampling import Evidence, RigSolution, posterior_mean
from ptri.structures import MANY_FRAMES, Keypoints, Observations, RigPosterior
from ptri.verdict import leave_one_out as diagnosis
from ptri.verdict.judge import NOBODY, SHIFTED, UNREADABLE, Verdict, verdict, with_verdict
from ptri.verdict.leave_one_out import NUM_JOINTS

# Keypoints (b, T, V', J, ...), K (b, T, V', 3, 3) and the rigs' numbers (b,) to a solution that is
# not judged yet.
Solve = Callable[[Keypoints, Tensor, Tensor], RigSolution]


class _Rigs(NamedTuple):
    keypoints: Keypoints
    K: Tensor


def mend(
    solution: RigSolution,
    found: Verdict,
    keypoints: Keypoints,
    K: Tensor,
    solve: Solve,
    settings: PosteriorConfig,
    frames: Tensor | None = None,
) -> RigSolution:
    """The solution with its verdict, in which rigs with one bad view have been solved again.

    A view whose labels a detector exchanged for a moment is read anew, and the rig accepted if
    nothing else is wrong. Where a whole clip is mirrored, exchanged or shifted, or a view fits
    nowhere, the rig stays rejected with the view's name; the other views' poses are then good (if
    that view is the reference, good relative to each other).

    Args:
        keypoints: (B, T, V, J, ...) px; K: (B, T, V, 3, 3) px; both as they were solved.
        frames: (T,) numbers of the frames, as in `ptri.verdict.judge.verdict`.
    """
    solution = with_verdict(solution, found.accepted, found.reason)
    T, V = keypoints.xy.shape[1:3]
    blamed = found.view != NOBODY
    drop = blamed & (found.reading == UNREADABLE)
    rows = (blamed & ~drop).nonzero()[:, 0]
    if len(rows):
        part, K_part = _rows(Keypoints, keypoints, rows), K[rows]
        again = solve(reread(part, K_part, _verdict_rows(found, rows), frames), K_part, rows)
        second = verdict(again, settings, frames)
        good = second.accepted & (T < MANY_FRAMES)
        reason = [
            _after(found.reason[row], second.reason[i], bool(good[i]))
            for i, row in enumerate(rows.tolist())
        ]
        solution = _put(solution, with_verdict(again, good, reason), rows)
    rows = drop.nonzero()[:, 0]
    if len(rows) and V > 2:
        views = _others(found.view[rows], V)
        part = _views(_Rigs(_rows(Keypoints, keypoints, rows), K[rows]), views)
        again = solve(part.keypoints, part.K, rows)
        solution = _put_without(solution, again, rows, found.view[rows], views)
    return solution


def _after(first: str, second: str, accepted: bool) -> str:
    """The verdict in words after a view was read anew."""
    if accepted:
        return f"accepted: {first.removeprefix('bad camera: ')}, and was read so"
    rest = "" if second == "accepted" else f" ({second})"
    return f"{first}; solved with that view read so{rest}"


def reread(
    keypoints: Keypoints, K: Tensor, found: Verdict, frames: Tensor | None = None
) -> Keypoints:
    """Keypoints (B, T, V, J, ...) with the blamed view of each rig read as its verdict says."""
    xy, covariance, confidence = keypoints
    _, T, V, J = confidence.shape
    own = torch.arange(V, device=xy.device) == found.view[:, None]  # (B, V)
    own = own[:, None, :, None]  # (B, 1, V, 1)
    extra = torch.arange(NUM_JOINTS, J)
    order = torch.stack([torch.cat([one.order, extra]) for one in found.readings]).to(xy.device)
    mirrored = torch.tensor([one.mirrored for one in found.readings], device=xy.device)
    index = found.reading.clamp_min(0)
    order = order[index][:, None, None].expand(*confidence.shape)  # (B, T, V, J)
    new_xy = xy.gather(3, order[..., None].expand_as(xy))
    new_covariance = covariance.gather(3, order[..., None, None].expand_as(covariance))
    new_confidence = confidence.gather(3, order)
    # Joints without a name have no left and right to exchange.
    unnamed = (order != torch.arange(J, device=xy.device)).any(-1, keepdim=True)
    unnamed = unnamed & (torch.arange(J, device=xy.device) >= NUM_JOINTS)
    new_xy = new_xy.masked_fill(unnamed[..., None], torch.nan)
    mirror = mirrored[index][:, None, None, None]
    across = 2 * K[..., 0, 2, None] - new_xy[..., 0]
    new_xy = torch.stack([torch.where(mirror, across, new_xy[..., 0]), new_xy[..., 1]], -1)
    side = torch.where(mirror, -1.0, 1.0)[..., None].to(covariance)
    sign = torch.cat([side, torch.ones_like(side)], -1)
    new_covariance = new_covariance * sign[..., None] * sign[..., None, :]
    late = (found.reading == SHIFTED)[:, None, None, None]
    if T > 1 and bool(late.any()):
        time = torch.arange(T, device=xy.device) if frames is None else frames
        low, share, inside = diagnosis.interpolation(time.to(xy), time.to(xy) + found.lag[:, None])
        rig = torch.arange(len(xy), device=xy.device)[:, None]
        before, after = ([v[rig, i] for v in keypoints] for i in (low, (low + 1).clamp_max(T - 1)))
        share = share[..., None, None, None].to(xy)
        moved = torch.lerp(before[0], after[0], share)
        moved = torch.where(share <= 0, before[0], torch.where(share >= 1, after[0], moved))
        moved = moved.masked_fill(~inside[..., None, None, None], torch.nan)
        new_xy = torch.where(late[..., None], moved, new_xy)
        new_covariance = torch.where(
            late[..., None, None], torch.maximum(before[1], after[1]), new_covariance
        )
        new_confidence = torch.where(late, torch.minimum(before[2], after[2]), new_confidence)
    return Keypoints(
        torch.where(own[..., None], new_xy, xy),
        torch.where(own[..., None, None], new_covariance, covariance),
        torch.where(own, new_confidence, confidence),
    )


def _rows(kind, value, rows: Tensor):
    return kind(*(part[rows] for part in value))


def _verdict_rows(found: Verdict, rows: Tensor) -> Verdict:
    return found._replace(
        accepted=found.accepted[rows], reason=[found.reason[row] for row in rows.tolist()],
        view=found.view[rows], reading=found.reading[rows], lag=found.lag[rows],
    )  # fmt: skip


def _others(view: Tensor, num_views: int) -> Tensor:
    """(b, V - 1) the views but one of each rig, in order."""
    every = torch.arange(num_views - 1, device=view.device).expand(len(view), -1)
    return every + (every >= view[:, None])


def _views(rigs: _Rigs, views: Tensor) -> _Rigs:
    """Rigs of the chosen views (b, V')."""
    rig = torch.arange(len(views), device=views.device)[:, None]

    def take(value: Tensor) -> Tensor:
        return value.transpose(1, 2)[rig, views].transpose(1, 2)

    return _Rigs(Keypoints(*(take(value) for value in rigs.keypoints)), take(rigs.K))


def _put(whole: RigSolution, part: RigSolution, rows: Tensor) -> RigSolution:
    """The solution of B rigs with some rigs' rows from another."""
    B = len(whole.posterior.ess)
    if len(rows) == B:
        return part
    return RigSolution(
        _put_posterior(whole.posterior, part.posterior, rows),
        *(_put_tensors(old, new, rows, B) for old, new in zip(whole[1:], part[1:])),
    )


def _put_posterior(whole: RigPosterior, part: RigPosterior, rows: Tensor) -> RigPosterior:
    samples = (old.index_copy(1, rows, new) for old, new in zip(whole[:3], part[:3]))
    single = (old.index_copy(0, rows, new.to(old)) for old, new in zip(whole[3:5], part[3:5]))
    reason = list(whole.reason)
    for row, text in zip(rows.tolist(), part.reason):
        reason[row] = text
    return RigPosterior(*samples, *single, reason)


def _put_tensors(old, new, rows: Tensor, B: int):
    """Rows of every tensor whose first dimension counts the rigs, inside nested tuples."""
    if isinstance(old, Tensor):
        return old.index_copy(0, rows, new.to(old)) if old.ndim and len(old) == B else old
    if isinstance(old, tuple) and not isinstance(old, BodyPrior):
        parts = [_put_tensors(a, b, rows, B) for a, b in zip(old, new)]
        return type(old)(*parts) if hasattr(old, "_fields") else tuple(parts)
    return old


def _put_without(
    whole: RigSolution, part: RigSolution, rows: Tensor, view: Tensor, views: Tensor
) -> RigSolution:
    """Puts in rigs that were solved without one view; they stay rejected.

    The view left out may stand anywhere around the person, at the distance first found. If it is
    the reference, the others keep the pose relative to it that was first found for one of them.
    """
    old, new = whole.posterior, part.posterior
    M, b = new.R.shape[:2]
    mean_R, mean_t = (value[rows] for value in posterior_mean(old))  # (b, V, ...)
    rig = torch.arange(b, device=rows.device)
    first = views[:, 0]  # 0, unless view 0 was left out
    base_R, base_t = mean_R[rig, first], mean_t[rig, first]  # (b, 3, 3): reference to first
    R_others = new.R @ base_R[:, None]  # (M, b, V - 1, 3, 3)
    t_others = (new.R @ base_t[:, None, :, None]).squeeze(-1) + new.t
    centre = whole.evidence.joints[rows].mean((1, 2)).to(mean_R)  # (b, 3)
    distance = (mean_R[rig, view] @ centre.unsqueeze(-1)).squeeze(-1) + mean_t[rig, view]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(M, b, 4, generator=generator, dtype=torch.float64).to(new.R)
    R_own = roma.unitquat_to_rotmat(q / q.norm(dim=-1, keepdim=True))
    t_own = distance - (R_own @ centre.unsqueeze(-1)).squeeze(-1)
    reference = (view == 0)[:, None]
    R_own = torch.where(reference[..., None], torch.eye(3).to(R_own), R_own)
    t_own = torch.where(reference, 0.0, t_own)
    V = views.shape[1] + 1
    R, t = new.R.new_empty(M, b, V, 3, 3), new.t.new_empty(M, b, V, 3)
    R[:, rig[:, None], views], t[:, rig[:, None], views] = R_others, t_others
    R[:, rig, view], t[:, rig, view] = R_own, t_own
    reason = [f"{old.reason[row]}; the others were solved without it" for row in rows.tolist()]
    rejected = torch.zeros_like(old.accepted[rows])
    posterior = _put_posterior(
        old, RigPosterior(R, t, new.log_weights, new.ess, rejected, reason), rows
    )

    # x_first = R x_ref + t of the first view that is left.
    def moved(joints: Tensor) -> Tensor:
        return (joints - base_t[:, None, None].to(joints)) @ base_R.to(joints).unsqueeze(1)

    joints = moved(part.evidence.joints), moved(part.evidence.whole.joints)
    evidence = _evidence_without(whole, part, rows, view, *joints)
    return whole._replace(
        posterior=posterior, evidence=_put_tensors(whole.evidence, evidence, rows, len(old.ess))
    )


def _evidence_without(
    whole: RigSolution,
    part: RigSolution,
    rows: Tensor,
    view: Tensor,
    joints: Tensor,
    all_joints: Tensor,
) -> Evidence:
    """The evidence of rigs that were solved without one view, with V views again.

    Args:
        joints: (b, T, J, 3) mm as they were found, in view 0's frame.
        all_joints: the same, with every keypoint and bone.
    """
    old = whole.evidence
    V = old.observations.xy.shape[2]
    used = (torch.arange(V, device=view.device) != view[:, None]).to(joints)  # (b, V)
    found = part.evidence.errors
    bias = joints.new_zeros(len(rows), V, *found.bias.shape[2:])
    bias[used > 0] = found.bias.flatten(0, 1)
    lengths = part.evidence.expansions[0].shared[:, : len(old.body.mean)]
    R, t = (value[rows].to(joints) for value in posterior_mean(whole.posterior))
    errors = found._replace(bias=bias)

    def of(observations: Observations, joints: Tensor) -> Evidence:
        left = Observations(
            observations.xy[rows],
            observations.information[rows] * used[:, None, :, None, None, None],
            observations.inlier[rows] * used[:, None, :, None],
            observations.held[rows],
        )
        bundle = Bundle(R, t, joints, lengths)
        return evidence_at(left, bundle, errors, old.body, len(old.expansions))

    every = of(old.whole.observations, all_joints)
    return of(old.observations, joints)._replace(whole=every)
