"""Cameras of which nothing is known, so that an estimate is always whole and says so."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from ptri.geometry.cameras import to_reference
from ptri.structures import Cameras, RigPosterior

# A camera that nothing is known about: its rotation is anything, its place this far (mm, standard
# deviation a coordinate) from the reference.
UNKNOWN_SIGMA = 5000.0


def with_unknown(
    posterior: RigPosterior | None,
    views: list[int],
    num_views: int,
    num_samples: int,
    seed: int,
    like: Tensor,
) -> RigPosterior:
    """The posterior (B = 1) of some views with all of the rig's, in view 0's frame.

    Args:
        posterior: of ``views``; None: of no view.
        num_samples: where there is no posterior.
        like: gives the type and the device.

    Returns:
        The other views' cameras are draws from what they could be.
    """
    M = num_samples if posterior is None else len(posterior.R)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(M, num_views, 4, generator=generator, dtype=torch.float64)
    t = UNKNOWN_SIGMA * torch.randn(M, num_views, 3, generator=generator, dtype=torch.float64)
    R, t = roma.unitquat_to_rotmat(q / q.norm(dim=-1, keepdim=True)).to(like), t.to(like)
    log_weights, ess = like.new_full((M, 1), -math.log(M)), like.new_ones(1)
    if posterior is not None:
        R[:, views], t[:, views] = posterior.R[:, 0].to(R), posterior.t[:, 0].to(t)
        log_weights, ess = posterior.log_weights, posterior.ess
    cameras = to_reference(Cameras(R, R, t))
    R, t = cameras.R.clone(), cameras.t.clone()
    R[:, 0], t[:, 0] = torch.eye(3).to(R), 0.0
    return RigPosterior(R[:, None], t[:, None], log_weights, ess)
