"""Focal lengths that are not known."""

from __future__ import annotations

import torch
from rigs_fixture import BODY, exact, gaussian_scene, normal, observed

from ptri.geometry.cameras import with_focal
from ptri.geometry.rays import normalise, refocused
from ptri.geometry.rotations import so3_exp
from ptri.geometry.triangulation import reproject
from ptri.posterior.adjust import adjust
from ptri.posterior.equations import (
    Bundle,
    normal_equations,
    person_centre,
    plain_errors,
    priors,
    robust_cost,
)
from ptri.posterior.expansion import cameras_at, coordinates_of, expand
from ptri.posterior.motion import carried, move_cameras
from ptri.posterior.prior import PosePrior, Prior, no_poses
from ptri.structures import take


def bundle_of(cameras, joints, log_focal):
    bones = joints[:, :, BODY.child] - joints[:, :, BODY.parent]
    lengths = bones.norm(dim=-1).log().median(1).values
    return Bundle(cameras.R, cameras.t, log_focal, joints, lengths)


def known(focal, views=3, poses=None):
    """The information of every focal length, and what is known of poses."""
    eye = torch.eye(views, dtype=torch.float64)
    return Prior(focal * eye, no_poses(eye) if poses is None else poses)


def noiseless(views=3, batch=2):
    """Observations of a scene without errors, by K that is wrong, and the true bundle."""
    observations, cameras, joints = observed(batch, views, 1, noise=1e-9, missing=0.0)
    log_focal = 0.2 * normal(batch, views)
    at = reproject(joints[None], observations, *take(exact(cameras.R, cameras.t)[:2], None))
    observations = observations._replace(
        xy=observations.xy + at.error[0],
        information=1e4 * torch.eye(2, dtype=torch.float64).expand_as(observations.information),
    )
    return refocused(observations, -log_focal), bundle_of(cameras, joints, log_focal)


def test_normal_equations_are_the_slope_and_the_bend_of_the_cost():
    observations, truth = noiseless()
    errors = plain_errors(observations, known(0.0))
    errors = errors._replace(
        tail=torch.zeros_like(errors.tail),
        bias=torch.zeros(2, 3, 17, 2, dtype=torch.float64),
        bias2=torch.full_like(errors.bias2, 0.3),
    )
    body, D = BODY._replace(mean=truth.log_lengths[0]), truth.num_cameras
    num_bones, J = len(body.mean), 17

    def cost(x, rig):
        bundle, centre = take((truth, person_centre(truth)), slice(rig, rig + 1))
        views = move_cameras(bundle.views, centre, x[None, :D])
        joints = bundle.joints + x[D : D + 3 * J].view(1, 1, J, 3)
        joints = joints + carried(centre, x[None, :D], 3)[:, None, None]
        lengths = bundle.log_lengths + x[D + 3 * J : D + 3 * J + num_bones]
        own = take(errors, slice(rig, rig + 1))
        own = own._replace(bias=x[D + 3 * J + num_bones :].view(1, 3, J, 2))
        moved = Bundle(*views, joints, lengths)
        return robust_cost(moved, take(observations, slice(rig, rig + 1)), own, body)[0]

    size = D + 3 * J + num_bones + 3 * J * 2
    shared = torch.tensor([*range(D), *range(D + 3 * J, size)])
    here = torch.full((size,), 1e-6, dtype=torch.float64)  # at 0 a turn has no second slope
    system = normal_equations(truth, observations, errors, body)
    prior, pull = priors(truth, errors, body)
    for rig in range(2):
        bend = torch.autograd.functional.hessian(lambda x, rig=rig: cost(x, rig), here)
        full = system.shared[rig] + prior[rig]
        joints = bend[D : D + 3 * J]
        scale = full.diagonal().sqrt()
        apart = (bend[shared][:, shared] - full) / scale / scale[:, None]
        assert float(apart.abs().max()) < 4e-3  # the least tail bends by 0.2 %
        by_joint = system.coupling[rig, 0]
        apart = (joints[:, shared].mT - by_joint) / scale[:, None]
        assert float(apart.abs().max()) < 4e-3 * float((by_joint / scale[:, None]).abs().max())
        slope = torch.autograd.functional.jacobian(lambda x, rig=rig: cost(x, rig), here)
        expected = system.shared_gradient[rig] + pull[rig]
        assert float(((slope[shared] - expected) / scale).abs().max()) < 1e-2


def test_gradient_with_residuals():
    """Where the keypoints do not fit, too."""
    observations, truth = noiseless()
    observations = observations._replace(xy=observations.xy + 0.01 * normal(2, 1, 3, 17, 2))
    poses = PosePrior(so3_exp(0.1 * normal(3, 3)) @ truth.R[0], truth.t[0] + 30.0, None)
    poses = poses._replace(information=torch.diag(torch.linspace(1, 12, 12).double()))
    errors = plain_errors(observations, known(50.0, poses=poses))

    def cost(x):
        views = move_cameras(truth.views, person_centre(truth), x)
        joints = truth.joints + carried(person_centre(truth), x, 3)[:, None, None]
        moved = Bundle(*views, joints, truth.log_lengths)
        return robust_cost(moved, observations, errors, BODY).sum()

    here = torch.zeros(2, truth.num_cameras, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(cost, here)
    gradient = normal_equations(truth, observations, errors, BODY).shared_gradient
    gradient = gradient[:, : truth.num_cameras]
    gradient += priors(truth, errors, BODY)[1][:, : truth.num_cameras]
    torch.testing.assert_close(slope, gradient, rtol=1e-6, atol=1e-6)


def test_coordinates_lead_back_to_the_cameras():
    observations, truth = noiseless()
    errors = plain_errors(observations, known(50.0))
    at = expand(observations, truth, errors, BODY)
    shape = normal(5, 2, truth.num_cameras - 1, seed=3)
    shape = shape * torch.tensor([0.1] * 3 + [0.05, 0.05, 0.05, 90, 90, 90] * 2)[:-1]
    size = 0.1 * normal(5, 2, seed=4)
    back_shape, back_size, _ = coordinates_of(cameras_at(shape, size, at), at)
    torch.testing.assert_close(back_shape, shape, rtol=1e-6, atol=1e-3)  # of 90 mm
    torch.testing.assert_close(back_size, size, rtol=1e-5, atol=1e-6)


def test_longer_lenses_are_found():
    keypoints, K, cameras, joints = gaussian_scene(6, 4, 12, noise=0.004)
    wrong = 0.15 * normal(6, 4, seed=5)
    observations = normalise(keypoints, with_focal(K, -wrong[:, None]))
    start = bundle_of(cameras, joints, torch.zeros_like(wrong))
    errors = plain_errors(observations, known(16.0, 4))
    bundle, _ = adjust(observations, start, BODY, 20, 6, errors)
    off = bundle.log_focal - wrong
    assert float(off.abs().median()) < 0.03, off
    assert float(wrong.abs().median()) > 0.08
