"""Keypoints between their frames: one view's track of a joint, read at any moment.

To find clocks, tracks are smoothed by local quadratic fits (Savitzky and Golay 1964), robustly:
plain interpolation is less noisy between frames than at them, which draws lags to halves, and it
knows no velocity. To bring views in step, the two neighbouring frames are interpolated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.structures import Keypoints, where

REACH = 4  # frames to either side that a fit takes
LEAST_FRAMES = 5  # of them that have to have seen the joint, on both sides of the moment
NEAR = 0.25  # of the distance of two frames
ROUNDS = 3  # of reweighting
OUTLIER2 = 4.0  # squared residual over the median one at which a frame's weight is a quarter


def smooth_tracks(xy: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Places (n, V, J, 2) and velocities a frame of tracks (T, V, J, 2) at moments (n, V).

    NaN = not seen, or too little of it around the moment.
    """
    T, V = xy.shape[:2]
    reach = torch.arange(-REACH, REACH + 1, device=xy.device)
    index = at.round().long().unsqueeze(-1) + reach  # (n, V, w)
    inside = (index >= 0) & (index < T)
    view = torch.arange(V, device=xy.device)[:, None]
    y = xy[index.clamp(0, T - 1), view]  # (n, V, w, J, 2)
    seen = torch.isfinite(y).all(-1) & inside.unsqueeze(-1)
    y = torch.where(seen.unsqueeze(-1), y, 0.0)
    tau = (index - at.unsqueeze(-1)) / REACH
    powers = torch.stack([torch.ones_like(tau), tau, tau.square()], -1)  # (n, V, w, 3)
    weight = seen.to(xy)
    for _ in range(ROUNDS):
        normal = torch.einsum("nvwj,nvwa,nvwb->nvjab", weight, powers, powers)
        normal = normal + 1e-9 * torch.eye(3).to(xy)  # guards a joint that was not seen
        right = torch.einsum("nvwj,nvwa,nvwjc->nvjac", weight, powers, y)
        fit = torch.linalg.solve(normal, right)  # (n, V, J, 3, 2)
        off2 = (y - torch.einsum("nvwa,nvjac->nvwjc", powers, fit)).square().sum(-1)
        usual = torch.where(seen, off2, torch.nan).nanmedian(2, keepdim=True).values
        # 1e-9 px^2 guards tracks without noise.
        weight = seen / (1 + off2 / (OUTLIER2 * usual.nan_to_num(1.0) + 1e-9)).square()
    before, after = (tau <= 0).unsqueeze(-1) & seen, (tau >= 0).unsqueeze(-1) & seen
    known = (seen.sum(2) >= LEAST_FRAMES) & before.any(2) & after.any(2)  # (n, V, J)
    fit = torch.where(known[..., None, None], fit, torch.nan)
    return fit[..., 0, :], fit[..., 1, :] / REACH


def keypoints_at(keypoints: Keypoints, at: Tensor) -> Keypoints:
    """Keypoints (n, V, J, ...) of tracks (T, V, J, ...) at moments (n, V), by interpolation.

    Between two frames both have to have seen the joint, or the one that is near; the covariance is
    theirs, since a detector's errors in neighbouring frames go together. Outside of a track nothing
    is seen.
    """
    T, V = keypoints.xy.shape[:2]
    low = at.floor().clamp(0, max(T - 2, 0)).long()
    share = at - low
    inside = (share >= 0) & (at <= T - 1)
    view = torch.arange(V, device=at.device)
    first, second = (
        Keypoints(*(value[index, view] for value in keypoints))
        for index in (low, (low + 1).clamp_max(T - 1))
    )
    # A frame that is near stands for its neighbour where that one did not see the joint.
    lacks = [~torch.isfinite(part.xy).all(-1) for part in (first, second)]  # (n, V, J)
    alone = lacks[1] & (share <= NEAR).unsqueeze(-1), lacks[0] & (share >= 1 - NEAR).unsqueeze(-1)
    first, second = where(alone[1], second, first), where(alone[0], first, second)
    xy, covariance, confidence = (
        torch.lerp(a, b, share.view(*share.shape, *[1] * (a.ndim - 2)))
        for a, b in zip(first, second)
    )
    seen = torch.isfinite(xy).all(-1) & inside.unsqueeze(-1)
    return Keypoints(
        torch.where(seen.unsqueeze(-1), xy, torch.nan),
        torch.where(seen[..., None, None], covariance, torch.eye(2).to(xy)),
        torch.where(seen, confidence, 0.0),
    )
