"""Limbs that are turned over: a search over the joints of each frame, the cameras held.

A bone of known length that is seen from few directions may point towards the cameras or away from
them (Sminchisescu and Triggs 2003). Adjustment does not pass from one to the other: the bone is too
short in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.damping import next_damping, start_damping
from ptri.posterior.adjust import damped
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import Bundle, Errors, frame_costs, lay_out, linearise, residuals
from ptri.skeleton import H36M17
from ptri.structures import Observations, constant, where

# A limb turns about its first joint; what hangs on it moves along.
_LIMBS = (
    ("right_elbow", ("right_wrist",)),
    ("left_elbow", ("left_wrist",)),
    ("right_shoulder", ("right_elbow", "right_wrist")),
    ("left_shoulder", ("left_elbow", "left_wrist")),
    ("right_knee", ("right_foot",)),
    ("left_knee", ("left_foot",)),
    ("right_hip", ("right_knee", "right_foot")),
    ("left_hip", ("left_knee", "left_foot")),
    ("thorax", ("head", "nose")),
    ("head", ("nose",)),
)
# Factors on the noise's variance: a turned limb lands far from its keypoints.
WIDTHS = (1e3, 300.0, 100.0, 30.0, 10.0, 3.0)
LIMBS = tuple(
    (H36M17.joints.index(first), tuple(H36M17.joints.index(name) for name in rest))
    for first, rest in _LIMBS
)


def turn_limbs(
    observations: Observations,
    bundle: Bundle,
    body: BodyPrior,
    errors: Errors,
    num_iterations: int = 8,
) -> Bundle:
    """Turns over every limb of every frame that fits better so, one after the other.

    Args:
        num_iterations: of `settle`, for each limb.
    """
    bundle, cost = settle(observations, bundle, body, errors, num_iterations)
    bundle, cost = _better(
        bundle, cost, *settle(observations, bundle, body, errors, num_iterations, WIDTHS)
    )
    centre = bundle.joints.mean(2)  # (N, T, 3)
    camera = -(bundle.R.mT @ bundle.t.unsqueeze(-1)).squeeze(-1)  # (N, V, 3)
    ray = torch.nn.functional.normalize(centre[:, :, None] - camera[:, None], dim=-1)
    # Cameras that face each other see depth along one line.
    same = torch.where((ray * ray[:, :, :1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    along = torch.nn.functional.normalize((same * ray).mean(2), dim=-1)[:, :, None]
    for first, rest in LIMBS:
        bone = bundle.joints[:, :, rest[0], None] - bundle.joints[:, :, first, None]
        joints = bundle.joints.clone()
        moving = constant(rest, joints.device)
        joints[:, :, moving] -= 2 * (bone * along).sum(-1, keepdim=True) * along
        turned = bundle._replace(joints=joints)
        bundle, cost = _better(
            bundle, cost, *settle(observations, turned, body, errors, num_iterations, WIDTHS)
        )
    return bundle


def _better(bundle: Bundle, cost: Tensor, other: Bundle, new: Tensor) -> tuple[Bundle, Tensor]:
    """Of each frame the cheaper joints, and their cost."""
    better = new < cost
    joints = torch.where(better[..., None, None], other.joints, bundle.joints)
    return bundle._replace(joints=joints), torch.where(better, new, cost)


def settle(
    observations: Observations,
    bundle: Bundle,
    body: BodyPrior,
    errors: Errors,
    num_iterations: int = 4,
    widths: tuple[float, ...] = (),
) -> tuple[Bundle, Tensor]:
    """Levenberg-Marquardt on the joints alone, every frame for itself.

    Args:
        widths: factors on the noise's variance in the first iterations, fewer than all, so that
            joints which are far off feel their keypoints.

    Returns:
        The bundle, and the cost (N, T) of its frames.
    """
    layout = lay_out(observations, body)
    at = residuals(bundle, layout, errors, body)
    damping = start_damping(at.stretch[..., 0])
    steps = [errors._replace(scale2=width * errors.scale2) for width in widths]
    steps += [errors] * (num_iterations - len(steps))
    cost = None
    for step, errors in enumerate(steps):
        if step <= len(widths):
            cost = frame_costs(at, layout, errors)
        linear = linearise(at, bundle, layout, errors, body)
        chol, _ = torch.linalg.cholesky_ex(damped(linear.frames, damping))
        move = torch.cholesky_solve(linear.frames_gradient.unsqueeze(-1), chol).squeeze(-1)
        trial = bundle.joints - move.view_as(bundle.joints)
        there = residuals(bundle._replace(joints=trial), layout, errors, body)
        new = frame_costs(there, layout, errors)
        better = new < cost  # (N, T)
        cost, joints = where(better, (new, trial), (cost, bundle.joints))
        bundle = bundle._replace(joints=joints)
        at = residuals(bundle, layout, errors, body)
        damping = next_damping(damping, better)
    return bundle, cost
