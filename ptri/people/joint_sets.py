"""What a detector of another joint set can say of Human3.6M's 17 joints."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.skeleton import H36M17, find_skeleton, linear_map


class JointSet(NamedTuple):
    """The 17 joints as a detector of some joint set gives them."""

    absent: tuple[bool, ...]  # (17,) joints that it has no counterpart of
    shares: tuple[tuple[float, ...], ...]  # (17, 17) rows of the joints that are means of others of
    # the 17, as the hip of both hips; the rows of all others are zero


@functools.cache
def joint_set(name: str) -> JointSet:
    """Which of the 17 joints keypoints of a set lack, and which are means of others.

    Joints made of keypoints that are none of the 17, such as ears, count as detected themselves.

    Args:
        name: one of `ptri.skeleton.SKELETONS`.

    Raises:
        UserError: no such set.
    """
    skeleton = find_skeleton(name)
    matrix = linear_map(skeleton, H36M17)  # (17, J), NaN where there is no counterpart
    absent = np.isnan(matrix).any(1)
    count = len(H36M17.joints)
    shares = np.zeros((count, count))
    if skeleton != H36M17:
        matrix = np.nan_to_num(matrix)
        single = (matrix > 0).sum(1) == 1
        own = matrix[single] > 0  # (N, J): the keypoint that such a joint is
        for row in np.flatnonzero((matrix > 0).sum(1) > 1):
            share = own @ matrix[row]  # of the joints that are keypoints
            if np.isclose(share.sum(), 1):
                shares[row, single] = share
    return JointSet(tuple(absent.tolist()), tuple(map(tuple, shares.tolist())))


def as_given(
    name: str, xy: Tensor, covariance: Tensor, confidence: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Simulated keypoints as a detector of a joint set gives them.

    What it lacks is missing; what is a mean of other joints is theirs, as in `ptri.rig.check`.

    Args:
        name: of the set. xy: (..., 17, 2) px. covariance: (..., 17, 2, 2) px^2.
        confidence: (..., 17). missing: (..., 17) bool.
    """
    absent, shares = (torch.tensor(part) for part in joint_set(name))
    made = shares.sum(1) > 0  # (17,)
    missing = missing | absent
    if made.any():
        # As if a joint's sources erred alike: no more certain than they are.
        means = torch.einsum("ij,...jk->...ik", shares, xy)
        spread = torch.einsum("ij,...jab->...iab", shares, covariance)
        least = torch.where(shares > 0, confidence.unsqueeze(-2), torch.inf).amin(-1)
        xy = torch.where(made[:, None], means, xy)
        covariance = torch.where(made[:, None, None], spread, covariance)
        confidence = torch.where(made, least, confidence)
        missing = missing | ((shares > 0) & missing.unsqueeze(-2)).any(-1)
    return xy, covariance, confidence, missing
