"""What is known of cameras before their keypoints."""

from __future__ import annotations

import torch
from rigs_fixture import exact, normal, random_rotations

from ptri.geometry.rotations import so3_exp
from ptri.posterior.motion import move_cameras
from ptri.posterior.prior import PosePrior, difference_slopes, differences, of_views
from ptri.structures import Views


def some_views(focal=False):
    R, t = random_rotations(2, 3), 1000.0 * normal(2, 3, 3, seed=1)
    R[:, 0], t[:, 0] = torch.eye(3, dtype=torch.float64), 0.0
    return Views(R, t, 0.1 * normal(2, 3, seed=4)) if focal else exact(R, t)


def test_slopes_are_those_of_the_differences():
    for focal in (False, True):
        views = some_views(focal)
        w, d = 0.3 * normal(2, 3, 3, seed=5), 50.0 * normal(2, 3, 3, seed=6)
        prior = PosePrior(so3_exp(w) @ views.R, views.t + d, None)
        centre = 500.0 * normal(2, 3, 3, seed=3) + torch.tensor([0.0, 0.0, 3000.0])
        zero = torch.zeros(2, 12 + 3 * focal, dtype=torch.float64)

        def moved(tangent, views=views, centre=centre, prior=prior):
            return differences(move_cameras(views, centre, tangent), prior)

        slopes = torch.autograd.functional.jacobian(moved, zero + 1e-9)
        found = difference_slopes(views, centre, prior)
        for rig in range(2):
            torch.testing.assert_close(
                found[rig], slopes[rig, :, rig], rtol=1e-5, atol=1e-5 * float(found.abs().max())
            )


def test_some_of_the_views():
    root = normal(18, 18, seed=7)
    covariance = root @ root.mT + torch.eye(18).double()
    views = some_views()
    R, t = (torch.cat([part[0], part[1, 1:2]]) for part in views[:2])
    prior = PosePrior(R, t, torch.linalg.inv(covariance))
    part = of_views(prior, [0, 1, 3])
    rows = [*range(6), *range(12, 18)]
    torch.testing.assert_close(torch.linalg.inv(part.information), covariance[rows][:, rows])
    assert part.R.equal(R[[0, 1, 3]])
    assert not len(of_views(prior, [1, 2]).information)
