"""A known studio: where cameras stand, learned from the rigs of other days.

Cameras that are put up in the same places again and again differ little from rig to rig. Their law
is taken to be Gaussian in the differences of `ptri.posterior.prior`, about the mean rig. Rigs are
few, so that the covariance is drawn to one without correlations, of one variance for all rotations
and one for all places, and widened; both by what leaves each rig most probable that was left out.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.cameras import to_reference
from ptri.geometry.rotations import rotation_mean
from ptri.posterior.prior import PosePrior, differences
from ptri.structures import Cameras, Views

LEAST_RIGS = 3
DRAWN = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # shares of the plain covariance that are tried
WIDER = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # and factors on the whole
# Nothing is put up again more exactly than this: rad and mm.
LEAST_STD = (1e-3, 1.0)


def learn_poses(R: Tensor, t: Tensor) -> PosePrior:
    """The law of a studio's rigs, in the frame of view 0.

    Args:
        R, t: (n, V, 3, 3), (n, V, 3) mm of n rigs, world to camera.

    Raises:
        UserError: fewer than three rigs.
    """
    if len(R) < LEAST_RIGS:
        raise UserError(f"known studio: {len(R)} rigs to learn from, {LEAST_RIGS} are needed")
    R, t = R.double(), t.double()
    R, t = to_reference(Cameras(R, R, t))[1:]
    settings = list(itertools.product(DRAWN, WIDER))
    scores = R.new_zeros(len(settings))
    for left_out in range(len(R)):
        others = [rig for rig in range(len(R)) if rig != left_out]
        for number, setting in enumerate(settings):
            law = _law(R[others], t[others], *setting)
            away = differences(Views(R[left_out], t[left_out], t[left_out, :0, 0]), law)
            chi2 = away @ law.information @ away
            scores[number] += 0.5 * (torch.linalg.slogdet(law.information)[1] - chi2)
    return _law(R, t, *settings[int(scores.argmax())])


def _law(R: Tensor, t: Tensor, drawn: float, wider: float) -> PosePrior:
    n, V = t.shape[:2]
    mean_R, mean_t = rotation_mean(R, R.new_full((n, V), 1 / n)), t.mean(0)
    law = PosePrior(mean_R.expand_as(R), mean_t.expand_as(t), None)
    away = differences(Views(R, t, t[:, :0, 0]), law)
    covariance = away.mT @ away / (n - 1)
    usual = covariance.diagonal().view(V - 1, 2, 3).mean((0, 2), keepdim=True)
    usual = usual + usual.new_tensor(LEAST_STD)[:, None].square()
    plain = torch.diag(usual.expand(V - 1, 2, 3).flatten())
    # The mean of n rigs is itself off by a part of how they vary.
    covariance = wider * (1 + 1 / n) * torch.lerp(covariance, plain, drawn)
    return PosePrior(mean_R, mean_t, torch.linalg.inv(covariance))
