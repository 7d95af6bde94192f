"""How a detector errs: its noise's scale, and a bias per view and joint.

Real detectors err together. A keypoint of one view and joint is off by a bias that all frames
share, ``b ~ N(0, bias2 I)`` in units of the view's stated noise. The biases are unknowns with a
prior (random effects); the prior's variance maximises the evidence with everything else integrated
out (restricted maximum likelihood; Patterson and Thompson 1971), from one eigendecomposition of the
biases' information. Errors that last as long as a posture have a mean too, which is no bias: in the
evidence a frame counts for what it is worth beside the others (`ptri.posterior.width`).
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
    priors,
)
from ptri.posterior.tails import fit_tail
from ptri.posterior.width import frames_worth
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
    num_rounds: int = 2,
    num_iterations: int = 2,
) -> tuple[Bundle, Errors]:
    """Alternates between the error model and the bundle, from an adjusted bundle.

    Returns:
        Both at the end; of fewer than ``MANY_FRAMES`` frames as given: their bias and their noise
        cannot be told apart, and the noise's scale holds both.
    """
    N, T, V, J, _ = observations.xy.shape
    if T < MANY_FRAMES:
        return bundle, errors
    errors = errors._replace(bias=observations.xy.new_zeros(N, V, J, 2))
    for _ in range(num_rounds):
        worth = frames_worth(observations, bundle, errors)
        errors = _fit_bias(observations, bundle, errors, body, worth)
        chi2 = misfits(bundle, observations, errors)[1]
        errors = errors._replace(tail=fit_tail(chi2, observations.inlier, errors.scale2))
        bundle, errors = adjust(observations, bundle, body, num_iterations, 0, errors)
    return bundle, errors


def _fit_bias(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior, worth: Tensor
) -> Errors:
    """The biases' variance at the top of its evidence, and their effective number.

    Args:
        worth: (N,) independent frames that one frame is worth.
    """
    num_bias = errors.bias[0].numel()
    system = normal_equations(bundle, observations, errors, body)
    chol, _ = torch.linalg.cholesky_ex(system.frames)
    right = torch.cat([system.coupling, system.frames_gradient.unsqueeze(2)], dim=2)
    reduced = (system.coupling @ torch.cholesky_solve(right.mT, chol)).sum(1)
    prior, pull = priors(bundle, errors, body)
    prior[:, -num_bias:, -num_bias:] = 0.0  # the biases' own prior is what is sought
    pull[:, -num_bias:] = 0.0
    worth = worth[:, None]
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
