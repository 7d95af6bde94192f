"""Limbs that are turned over, and bones that have no say."""

import pytest
import torch
from rigs_fixture import BODY, observed

from ptri.posterior.equations import Bundle, normal_equations, plain_errors, robust_cost
from ptri.posterior.limbs import LIMBS, WIDTHS, settle, turn_limbs
from ptri.skeleton import H36M17


def true_bundle(cameras, joints):
    bones = joints[:, :, BODY.child] - joints[:, :, BODY.parent]
    return Bundle(cameras.R, cameras.t, joints, bones.norm(dim=-1).log().median(1).values)


def turned(bundle, limb):
    """Every frame's limb mirrored in depth, as the first camera sees it."""
    first, rest = LIMBS[limb]
    joints = bundle.joints.clone()
    along = torch.nn.functional.normalize(bundle.joints.mean(2), dim=-1)[:, :, None]
    bone = joints[:, :, rest[:1]] - joints[:, :, first : first + 1]
    joints[:, :, rest] -= 2 * (bone * along).sum(-1, keepdim=True) * along
    return bundle._replace(joints=joints)


@pytest.mark.parametrize("limb", [0, 3, 5, 6])
def test_a_limb_that_is_turned_over_comes_back(limb):
    observations, cameras, joints = observed(4, views=2, frames=6, missing=0.0)
    truth, errors = true_bundle(cameras, joints), plain_errors(observations)
    wrong = turned(truth, limb)
    _, right = settle(observations, truth, BODY, errors, 10)
    _, stuck = settle(observations, wrong, BODY, errors, 8)
    assert (stuck > right + 2).double().mean() > 0.15  # adjustment alone leaves limbs turned over
    found = turn_limbs(observations, wrong, BODY, errors)
    _, cost = settle(observations, found, BODY, errors, 8)
    assert (cost < right + 0.5).double().mean() > 0.95


def test_frames_settle_by_themselves():
    observations, cameras, joints = observed(2, frames=3, missing=0.0)
    truth, errors = true_bundle(cameras, joints), plain_errors(observations)
    moved = joints.clone()
    moved[:, 1] += 40 * torch.randn(moved[:, 1].shape, generator=torch.Generator().manual_seed(0))
    far = truth._replace(joints=moved)
    both, cost = settle(observations, far, BODY, errors, 12, WIDTHS)
    alone, expected = settle(observations, truth, BODY, errors, 10)
    torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both.joints, alone.joints, rtol=0, atol=1.0)
    assert torch.equal(both.R, truth.R)


def test_bones_of_joints_that_are_not_held_say_nothing():
    observations, cameras, joints = observed(2, frames=2, missing=0.0)
    truth, errors = true_bundle(cameras, joints), plain_errors(observations)
    elbow = H36M17.joints.index("left_elbow")
    held = observations.held.clone()
    held[..., elbow] = 0.0
    bent = truth._replace(joints=truth.joints.clone())
    bent.joints[..., elbow, :] += 200.0
    system = normal_equations(bent, observations._replace(held=held), errors, BODY)
    bones = [i for i, (a, b) in enumerate(H36M17.bones) if elbow in (a, b)]
    rows = 6 * 3 + torch.tensor(bones)
    assert len(bones) == 2
    assert not system.coupling[:, :, rows].any() and not system.shared[:, rows, rows].any()
    # Its stretched bones cost nothing; held, they cost a lot.
    free = observations._replace(inlier=0 * observations.inlier, held=held)
    cost, same = (robust_cost(bundle, free, errors, BODY) for bundle in (bent, truth))
    torch.testing.assert_close(cost, same)
    tight = robust_cost(bent, free._replace(held=torch.ones_like(held)), errors, BODY)
    assert (tight > same + 10).all()
