"""Whether focal lengths are what K says, from what the keypoints say of them.

A camera whose focal length is wrong fits nearly as well, elsewhere: residuals do not show it, but
the posterior of the focal lengths does. Which of them are wrong is the explanation with the largest
evidence: each is given a wide prior in place of K's, or all have one factor in common, as when K is
of pictures of another size.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from ptri.posterior.modes import FocalLengths
from ptri.structures import RigPosterior
from ptri.verdict.verdict import Code, Verdict

WRONG_STD = 0.25  # of the log of a focal length that is wrong
ODDS = 1 / 50  # that K of a view is wrong, or that all are
MOST_WRONG = 2  # views told apart; more: all are doubted


@torch.no_grad()
def wrong_lenses(told: FocalLengths, prior: Tensor) -> tuple[list[int], Tensor | None]:
    """Views of one rig whose focal lengths are not those of K; and how they may be off.

    Args:
        told: (V), (V, V). prior: (V, V) covariance of the log focal lengths by K.

    Returns:
        The views, none where K is right; and the covariance (V, V) with which to solve again.
    """
    V = len(prior)
    own, all_ = WRONG_STD**2 * torch.eye(V).to(prior), tuple(range(V))
    guesses = [((), 0 * own, 0.0)]
    for count in range(1, min(MOST_WRONG, V - 1) + 1):
        for views in combinations(all_, count):
            chosen = torch.zeros(V).to(prior)
            chosen[list(views)] = 1.0
            guesses.append((views, torch.diag(chosen) @ own, count * math.log(ODDS)))
    guesses.append((all_, WRONG_STD**2 * torch.ones_like(own), math.log(ODDS)))
    guesses.append((all_, own, math.log(ODDS)))
    evidence = []
    for _, doubt, log_odds in guesses:
        covariance = told.covariance + prior + doubt
        if not bool(torch.isfinite(covariance).all()):
            return [], None
        square = told.log_focal @ torch.linalg.solve(covariance, told.log_focal)
        evidence.append(log_odds - 0.5 * float(square + torch.logdet(covariance)))
    views, doubt, _ = guesses[max(range(len(guesses)), key=evidence.__getitem__)]
    return list(views), prior + doubt if views else None


def lens_verdict(verdict: Verdict, views: list[int], posterior: RigPosterior) -> Verdict:
    """The verdict on a rig (B = 1), by the views whose focal lengths are wrong."""
    if not views:
        return verdict
    off = torch.expm1(posterior.log_weights[:, 0].exp() @ posterior.log_focal[:, 0])
    worst = max(views, key=lambda v: abs(float(off[v])))
    every = len(views) == len(off)
    code = Code.FOCAL_LENGTHS if every else Code.FOCAL_LENGTH
    value = float(off.median() if every else off[worst])
    return Verdict(code, None if every else worst, value=value, figures=verdict.figures)
