"""How improbable a rig's posterior says the true cameras are: a loss for what it is made from."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ptri.posterior.modes import noise_scale_sigma
from ptri.posterior.sampling import RigSolution, log_target
from ptri.structures import Cameras, Views, constant, tree_map

NUM_NODES = 7  # at which the density of the noise's scale is evaluated
NUM_SCALE_STEPS = 4  # towards its top, MAX_SCALE_STEP standard deviations at most each
MAX_SCALE_STEP = 8.0


def pose_loss(cameras: Cameras, solution: RigSolution) -> Tensor:
    """Monte-Carlo pose loss (B,): negative log posterior density at the true cameras, nats.

    ``-log p(theta*) + log (1/M) sum p(theta_m) / q(theta_m)`` (EPro-PnP, eq. 7), over Haar and mm.
    The noise's scale is integrated out: Gauss-Hermite quadrature about the most probable one.
    """
    R, t = (value[None].to(solution.log_evidence) for value in (cameras.R, cameras.t))
    views = Views(R, t, R.new_zeros(*R.shape[:2], 0))
    rule = np.polynomial.hermite.hermgauss(NUM_NODES)
    nodes, weights = (constant(tuple(v.tolist()), t.device, t.dtype) for v in rule)
    place, width = _noise_scale_at(views, solution)
    log_scale = place + width * 2**0.5 * nodes[:, None]  # (nodes, B)
    many = tree_map(lambda value: value.expand(NUM_NODES, *value.shape[1:]), views)
    target = log_target(many, solution.evidence, log_scale)[0]
    share = nodes.square() + weights.log() + 0.5 * math.log(2)
    truth = torch.logsumexp(target + share[:, None], dim=0) + width.log()
    return solution.log_evidence - truth


@torch.no_grad()
def _noise_scale_at(views: Views, solution: RigSolution) -> tuple[Tensor, Tensor]:
    """The most probable log noise scale (B,) of cameras (1, B, ...), over the best mode's, and its
    standard deviation (B,): Newton steps with differences for derivatives."""
    at = solution.evidence.best
    step = noise_scale_sigma(at)  # (B,)
    place, width = torch.zeros_like(step), step
    three = constant((-1, 0, 1), step.device, step.dtype)[:, None]
    views = tree_map(lambda value: value.expand(3, *value.shape[1:]), views)
    for _ in range(NUM_SCALE_STEPS):
        low, middle, high = log_target(views, solution.evidence, place + three * step)[0]
        slope, bend = (high - low) / 2, (low + high - 2 * middle).clamp_max(-0.1)
        place = place + step * (-slope / bend).clamp(-MAX_SCALE_STEP, MAX_SCALE_STEP)
        width = step * (-bend).rsqrt()
    return place, width
