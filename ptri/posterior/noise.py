"""How a detector errs: its noise's scale, a bias per view and joint, correlation over frames.

Real detectors err together. A keypoint of one view and joint is off by a bias that all frames
share, ``b ~ N(0, bias2 I)`` in units of the view's stated noise, and what is left is correlated
from one frame to the next. The biases are unknowns with a prior (random effects); the prior's
variance maximises the evidence with everything else integrated out (restricted maximum likelihood;
Patterson and Thompson 1971), from one eigendecomposition of the biases' information. Of frames
whose errors have the lag-one autocorrelation r, each counts for (1 - r) / (1 + r).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptri.posterior.adjust import adjust
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import (
    Bundle,
    Errors,
    misfits,
    normal_equations,
    prior_deviation,
    prior_information,
)
from ptri.structures import MANY_FRAMES, Observations

# Trial variances of the biases, in units of the stated noise's variance.
RIDGE = 1e-9  # 1/mm^2 or 1/rad^2, far below any information
GRID_LOW, GRID_HIGH, GRID_SIZE = 1e-3, 1e2, 51


@torch.no_grad()
def fit_errors(
    observations: Observations,
    bundle: Bundle,
    errors: Errors,
    body: BodyPrior,
    frame_worth: float = 1.0,
    correlated: bool = True,
    num_rounds: int = 2,
    num_iterations: int = 2,
) -> tuple[Bundle, Errors]:
    """Alternates between the error model and the bundle, from an adjusted bundle.

    Args:
        frame_worth: power of a frame; below 1 where the errors of an image's joints go together.
        correlated: a frame counts for less where the residuals of successive frames go together.

    Returns:
        Both at the end; of fewer than ``MANY_FRAMES`` frames as given: their bias and their noise
        cannot be told apart, and the noise's scale holds both.
    """
    N, T, V, J, _ = observations.xy.shape
    if T < MANY_FRAMES:
        return bundle, errors
    errors = errors._replace(bias=observations.xy.new_zeros(N, V, J, 2))
    for _ in range(num_rounds):
        errors = _fit_bias(observations, bundle, errors, body)
        bundle, errors = adjust(observations, bundle, body, num_iterations, 0, errors)
        worth = torch.full_like(errors.scale2, frame_worth)
        if correlated:
            worth = worth * _frame_worth(observations, bundle, errors)
        errors = errors._replace(frame_weight=worth)
    return bundle, errors


def _fit_bias(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior
) -> Errors:
    """The biases' variance at the top of its evidence, and their effective number."""
    num_bias = errors.bias[0].numel()
    system = normal_equations(bundle, observations, errors, body)
    num_cameras = 6 * (bundle.t.shape[1] - 1)
    chol, _ = torch.linalg.cholesky_ex(system.frames)
    right = torch.cat([system.coupling, system.frames_gradient.unsqueeze(2)], dim=2)
    reduced = (system.coupling @ torch.cholesky_solve(right.mT, chol)).sum(1)
    prior = prior_information(errors, body, num_cameras)
    prior[:, -num_bias:, -num_bias:] = 0.0  # the biases' own prior is what is sought
    pull = (prior @ prior_deviation(bundle, errors, body).unsqueeze(-1)).squeeze(-1)
    worth = errors.frame_weight[:, None]
    information = worth[..., None] * (system.shared - reduced[..., :-1]) + prior
    gradient = worth * (system.shared_gradient - reduced[..., -1]) + pull
    rest = slice(0, information.shape[-1] - num_bias)
    biases = slice(rest.stop, None)
    cross = information[:, rest, biases]
    eye = torch.eye(rest.stop, dtype=cross.dtype, device=cross.device)
    both = torch.cat([cross, gradient[:, rest, None]], dim=-1)
    # A view that nobody sees makes it singular: its rig's numbers are then anything, and finite.
    solved = torch.linalg.solve_ex(information[:, rest, rest] + RIDGE * eye, both)[0]
    own = information[:, biases, biases] - cross.mT @ solved[..., :-1]
    slope = gradient[:, biases] - (cross.mT @ solved[..., -1:]).squeeze(-1)
    eigenvalue, basis = torch.linalg.eigh(0.5 * (own + own.mT))
    eigenvalue = eigenvalue.clamp_min(0.0).unsqueeze(-1)  # (N, num_bias, 1)
    # What the keypoints say of the biases: own b = target, b the unconstrained estimate.
    target = (own @ errors.bias.flatten(1).unsqueeze(-1)).squeeze(-1) - slope
    projected = (basis.mT @ target.unsqueeze(-1)).square()
    grid = torch.logspace(
        math.log10(GRID_LOW), math.log10(GRID_HIGH), GRID_SIZE, dtype=own.dtype, device=own.device
    )
    shrink = grid / (1 + grid * eigenvalue)  # (N, num_bias, grid)
    evidence = 0.5 * (projected * shrink - torch.log1p(grid * eigenvalue)).sum(1)
    best = grid[evidence.argmax(1)]  # (N,)
    shared = best[:, None] * eigenvalue.squeeze(-1)
    return errors._replace(bias2=best, num_bias=(shared / (1 + shared)).sum(1))


def _frame_worth(observations: Observations, bundle: Bundle, errors: Errors) -> Tensor:
    """How many independent frames one frame is worth, (N,) in [1 / T, 1], by its residuals."""
    T = observations.xy.shape[1]
    error, weight = misfits(bundle, observations, errors)
    both = (weight[:, 1:] * weight[:, :-1])[..., None]
    product = (both * error[:, 1:] * error[:, :-1]).sum((1, 2, 3, 4))
    energy = 0.5 * both * (error[:, 1:].square() + error[:, :-1].square())
    # 1e-12 guards points that fit exactly.
    lag = product / energy.sum((1, 2, 3, 4)).clamp_min(1e-12)
    # Where the biases have taken the mean of T residuals away, r comes out too small by
    # (1 + 4 r) / T (Marriott and Pope 1954).
    share = (errors.num_bias / errors.bias[0].numel()).clamp_max(1.0)
    lag = (lag + share / T) / (1 - 4 * share / T).clamp_min(0.2)
    lag = lag.clamp(0.0, 0.999)
    return ((1 - lag) / (1 + lag)).clamp_min(1.0 / T)
