"""What is known of a rig's cameras before its keypoints: focal lengths, and poses.

Poses are known by a Gaussian law of how they differ from the most probable ones: each view but the
first by a rotation vector w (rad) and a vector d (mm), ``R = exp(w) R0``, ``t = t0 + d``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.rotations import skew, so3_log
from ptri.structures import Views, tree_map


class PosePrior(NamedTuple):
    """Where the cameras of a rig most probably are; any leading dimensions."""

    R: Tensor  # (..., V, 3, 3) view 0's frame
    t: Tensor  # (..., V, 3) mm
    information: Tensor  # (..., P, P) of (w, d) of views 1...; P = 6 (V - 1), 0: nothing is known


class Prior(NamedTuple):
    """What is known of the cameras of a rig; any leading dimensions."""

    focal: Tensor  # (..., F, F) information of the log focal lengths; F = V, 0: K is exact
    poses: PosePrior

    def if_any(self) -> Prior | None:
        """None where K is exact and nothing else known."""
        return self if len(self.focal) or len(self.poses.information) else None

    def expand(self, count: int, like: Tensor) -> Prior:
        """Of one rig that of so many, of a tensor's type."""
        return tree_map(lambda part: part.to(like).expand(count, *part.shape), self)


def no_poses(like: Tensor) -> PosePrior:
    """Nothing is known of one rig's poses."""
    return PosePrior(like.new_zeros(0, 3, 3), like.new_zeros(0, 3), like.new_zeros(0, 0))


def differences(views: Views, prior: PosePrior) -> Tensor:
    """How poses differ from the most probable ones, (..., P)."""
    w = so3_log(views.R[..., 1:, :, :] @ prior.R[..., 1:, :, :].mT)
    return torch.cat([w, (views.t - prior.t)[..., 1:, :]], dim=-1).flatten(-2)


def pose_cost(views: Views, prior: PosePrior) -> Tensor:
    """Negative log density (...) of poses, up to a constant; 0 where nothing is known."""
    if not prior.information.shape[-1]:
        return views.t.new_zeros(())
    away = differences(views, prior)
    return 0.5 * torch.einsum("...i,...ij,...j->...", away, prior.information, away)


def difference_slopes(views: Views, centre: Tensor, prior: PosePrior) -> Tensor:
    """Derivatives (N, P, F + P) of `differences` by the tangent of `motion.move_cameras`.

    Args:
        views: (N, V, ...). centre: (N, V, 3), pivots in the camera frames.
    """
    R, t, log_focal = views
    N, V, _ = t.shape
    F = log_focal.shape[1]
    slopes = t.new_zeros(N, V - 1, 6, F + 6 * (V - 1))
    w = so3_log(R[:, 1:] @ prior.R[:, 1:].mT)
    for view in range(1, V):
        own = slopes[:, view - 1, :, F + 6 * (view - 1) : F + 6 * view]
        own[:, :3, :3] = _inverse_left_jacobian(w[:, view - 1])
        own[:, 3:, :3] = -skew(t[:, view] - centre[:, view])
        own[:, 3:, 3:] = torch.eye(3).to(t)
        if F:
            slopes[:, view - 1, 5, view] = centre[:, view, 2]
            slopes[:, view - 1, 3:, 0] -= centre[:, :1, 2] * R[:, view, :, 2]
    return slopes.flatten(1, 2)


def _inverse_left_jacobian(w: Tensor) -> Tensor:
    """d w / d a (..., 3, 3) of ``exp(a) exp(w)`` at a = 0 (Barfoot, State Estimation for Robotics,
    2017, section 7.1.5)."""
    angle = w.norm(dim=-1)[..., None, None].clamp_min(1e-6)
    half, cross = 0.5 * angle, skew(w)
    square = (1 - half / half.tan()) / angle.square()
    return torch.eye(3).to(w) - 0.5 * cross + square * cross @ cross


def of_views(prior: PosePrior, views: list[int]) -> PosePrior:
    """What is known of some of the views of one rig, whatever the others are.

    Nothing, where view 0 is none of them: it is the frame.
    """
    if not prior.information.shape[-1] or views[:1] != [0]:
        return no_poses(prior.t)
    rows = torch.arange(prior.information.shape[-1], device=prior.t.device).view(-1, 6)
    inside = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    inside[[view - 1 for view in views[1:]]] = True
    own, rest = rows[inside].flatten(), rows[~inside].flatten()
    cross = prior.information[own][:, rest]
    others = torch.linalg.pinv(prior.information[rest][:, rest], hermitian=True)
    information = prior.information[own][:, own] - cross @ others @ cross.mT
    return PosePrior(prior.R[views], prior.t[views], information)
