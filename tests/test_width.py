"""How much wider the posterior is than its likelihood says: `ptri.posterior.width`, and tails."""

import math
from types import SimpleNamespace

import pytest
import torch
from rigs_fixture import BODY, exact, observed, start_near, starts_near

from ptri.config_sections import PosteriorConfig
from ptri.geometry.rotations import rotation_angle, so3_exp
from ptri.posterior import modes
from ptri.posterior.adjust import adjust
from ptri.posterior.equations import noise_unit
from ptri.posterior.moments import posterior_mean, rotation_covariance
from ptri.posterior.noise import fit_errors
from ptri.posterior.optima import Poses
from ptri.posterior.sampling import rig_posterior
from ptri.posterior.tails import fit_tail
from ptri.posterior.widened import disagreement2
from ptri.posterior.width import LENGTH, errors_together, joint_weights, widening
from ptri.structures import tree_map


def together(observations, cameras, joints, worth=None):
    bundle, errors = adjust(observations, start_near(cameras, joints, 2.0), BODY)
    bundle, errors = fit_errors(observations, bundle, errors, BODY)
    return errors_together(observations, bundle, errors, BODY, worth)


def alike(joints):
    """Errors (B, T, 4, J, 2) in standard deviations that go together as the model says."""
    posture = joints - joints.mean(2, keepdim=True)
    frames = (posture[:, :, None] - posture[:, None]).norm(dim=-1).mean(-1)
    between = (joints[:, :, :, None] - joints[:, :, None]).norm(dim=-1).mean(1)
    roots = []
    for distance in (frames, between):
        eye = 1e-6 * torch.eye(distance.shape[-1]).double()
        roots.append(torch.linalg.cholesky((-distance / LENGTH).exp() + eye))
    white = torch.randn(
        *joints.shape[:2], 4, joints.shape[2], 2, generator=torch.Generator().manual_seed(0)
    ).double()
    return torch.einsum("bts,bji,bsvic->btvjc", *roots, white)


def test_independent_errors_do_not_go_together():
    found = together(*observed(6, 4, 10))
    # Measured: over frames 0 to 0.05, over joints 0 to 0.23.
    assert float(found.frames.mean()) < 0.15 and float(found.joints.mean()) < 0.2


def test_errors_that_go_together_are_found_and_widen():
    observations, cameras, joints = observed(6, 4, 10, missing=0.0, noise=0.0)
    xy = observations.xy + noise_unit(observations)[..., None, None] * alike(joints)
    found = together(observations._replace(xy=xy), cameras, joints)
    # Measured: 0.63 to 1, and 0.11 to 0.78; real errors have more in common than the kernel says.
    assert float(found.frames.mean()) > 0.5 and float(found.joints.mean()) > 0.25


def test_joint_weights():
    observations, _, joints = observed(2, 4, 3, missing=0.0)
    one, nothing = torch.ones(2).double(), torch.zeros(2).double()
    assert bool((joint_weights(observations, joints, nothing) == 1).all())
    joints = joints.clone()
    joints[:, :, 1:5] = joints[:, :, :1]  # five at one place, and the twelve others far away
    joints[:, :, 5:] += 1e6 * torch.arange(1, 13)[:, None]
    weights = joint_weights(observations, joints, one)
    torch.testing.assert_close(weights[:, 5:] / weights[:, :1], torch.full((2, 12), 5.0).double())
    torch.testing.assert_close(weights.log().mean(1), nothing)
    # What nobody sees takes nothing from its neighbours.
    seen = torch.ones_like(observations.inlier)
    seen[..., 1:5] = 0.0
    weights = joint_weights(observations._replace(inlier=seen), joints, one)
    torch.testing.assert_close(weights[:, 0], weights[:, 5])


def test_joints_that_err_alike_count_for_less(monkeypatch):
    """The five joints of a head that is off are not five witnesses."""
    observations, cameras, joints = observed(24, 4, 4, missing=0.0, noise=0.0)
    xy = observations.xy + noise_unit(observations)[..., None, None] * alike(joints)
    observations, starts = observations._replace(xy=xy), starts_near(cameras, joints, 2.0)

    def off():
        R = width(observations, starts, 0.25)[1]
        return float(rotation_angle(R.mT @ cameras.R)[:, 1:].square().mean().sqrt())

    weighed = off()
    monkeypatch.setattr(modes, "joint_weights", lambda seen, *_: torch.ones_like(seen.held[:, 0]))
    assert weighed < off()  # measured 0.988 of it


def test_what_lasts_as_long_as_a_posture_is_no_bias():
    observations, cameras, joints = observed(6, 4, 20, missing=0.0, noise=0.0)

    def bias2(error):
        xy = observations.xy + noise_unit(observations)[..., None, None] * error
        seen = observations._replace(xy=xy)
        bundle, errors = adjust(seen, start_near(cameras, joints, 2.0), BODY)
        return fit_errors(seen, bundle, errors, BODY)[1].bias2

    lasting = alike(joints)
    white = torch.randn(lasting.shape, generator=torch.Generator().manual_seed(1)).double()
    biased = white + white[:, :1]
    # Measured: 0.001 to 0.04, 0.001 to 0.01; 0.08 to 0.5 of the one that would be true.
    assert float(bias2(lasting).max()) < 0.06 and float(bias2(white).max()) < 0.02
    assert float(bias2(biased).min()) > 0.06


def width(observations, starts, worth=None):
    """Deviations (B, V - 1) of the rotations, and the posterior's mean."""
    options = PosteriorConfig(num_modes=1)
    posterior = rig_posterior(observations, starts, BODY, options, worth=worth).posterior
    covariance = rotation_covariance(posterior)[:, 1:]
    return covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt(), posterior_mean(posterior)[0]


def test_one_frame_repeated_counts_once():
    observations, cameras, joints = observed(4, 4, 1)
    starts = starts_near(cameras, joints, 3.0)
    one = width(observations, starts, 1.0)[0]
    observations = tree_map(lambda value: value.expand(-1, 8, *value.shape[2:]), observations)
    many = width(observations, starts._replace(joints=starts.joints.expand(-1, -1, 8, -1, -1)))[0]
    ratio = float((many / one).median())
    assert 0.8 < ratio < 2.2  # eight frames: 0.35; measured 1.7: what is a bias is known less


def test_the_worth_of_an_image_widens_and_does_not_move():
    observations, cameras, joints = observed(8, 4, 1)
    starts = starts_near(cameras, joints, 3.0)
    (wide, R), (narrow, other) = (width(observations, starts, worth) for worth in (0.25, 1.0))
    assert 1.6 < float((wide / narrow).median()) < 3.0  # 2, and what joints have in common
    assert float((rotation_angle(R @ other.mT)[:, 1:] / wide).median()) < 0.3


@pytest.mark.parametrize("views", [2, 3, 4])
def test_a_camera_that_the_others_joints_turn_widens(views):
    observations, cameras, joints = observed(2, views, 10)
    poses = Poses(
        torch.einsum("bvac,btjc->btvja", cameras.R, joints) + cameras.t[:, None, :, None],
        torch.full(observations.inlier.shape, 20.0, dtype=torch.float64),
    )
    w = torch.randn(64, 2, views, 3, generator=torch.Generator().manual_seed(1)).double()
    w[:, :, 0] = 0  # the stated deviations are 2 deg
    weights = torch.full((64, 2), -math.log(64), dtype=torch.float64)
    evidence = SimpleNamespace(
        observations=observations, joints=joints, weight=observations.inlier,
        scale2=torch.ones(2, dtype=torch.float64),
    )  # fmt: skip
    found = []
    for angle in (0.0, 0.5):
        turn = so3_exp(torch.tensor([0.0, angle, 0.0], dtype=torch.float64))
        R = cameras.R.clone()
        R[:, 1] = turn @ R[:, 1]
        samples = R @ so3_exp(math.radians(2) / 3**0.5 * w), cameras.t.expand(64, -1, -1, -1)
        found.append(disagreement2(exact(*samples), weights, evidence, poses))
    few = torch.zeros_like(observations.inlier)
    few[:, :5, :, 0] = 1.0  # of five points nothing can be told
    evidence.observations = observations._replace(inlier=few)
    assert bool((disagreement2(exact(*samples), weights, evidence, poses) == 1).all())
    # Measured: 0.4 to 0.9; 199 to 540.
    assert float(found[0].max()) < 1.0 and float(found[1].min()) > 60.0, found


def test_disagreement_scales_what_was_added_and_spares_the_size(monkeypatch):
    observations, cameras, joints = observed(4, 4, 1)
    starts = starts_near(cameras, joints, 3.0)
    options = PosteriorConfig(num_modes=1)

    def solved(factor):
        one = torch.full((4,), factor, dtype=torch.float64)
        monkeypatch.setattr("ptri.posterior.widened.disagreement2", lambda *_: one)
        return rig_posterior(observations, starts, BODY, options, worth=0.25)

    def variances(solution):
        posterior = solution.posterior
        turn = rotation_covariance(posterior)[:, 1:].diagonal(dim1=-2, dim2=-1).sum((1, 2))
        size, weights = posterior.t.norm(dim=-1).sum(2).log(), posterior.log_weights.exp()
        return turn, (weights * (size - (weights * size).sum(0)).square()).sum(0)

    one, four = solved(1.0), solved(4.0)
    before = solved(1e-9)
    narrow = variances(before)[0]
    (wide, size), (wider, other) = variances(one), variances(four)
    grown = (wider - narrow) / (wide - narrow)
    # The moves grow by 2: variances by 4, where these are large, and by 2 where small. Measured 3.
    assert 2.5 < float(grown.median()) < 3.5, grown
    assert 0.8 < float((other / size).median()) < 1.25
    (R, t), (wide_R, wide_t) = (posterior_mean(s.posterior) for s in (before, four))
    assert float(rotation_angle(R @ wide_R.mT).max()) < 2e-3  # rad, of regions some tenths wide
    torch.testing.assert_close(wide_t, t)
    assert torch.equal(one.usual, four.usual)  # what blame goes by


def test_widening_gives_the_sandwich():
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    A, E = (part @ part.mT + torch.eye(5) for part in root)
    matrix = widening(A, E, torch.zeros(5).double())
    inverse = torch.linalg.inv(A)
    assert torch.allclose(matrix @ inverse @ matrix.mT, inverse @ (A + E) @ inverse)


def test_tails_are_told_from_a_gaussian_and_not_by_one_bad_view():
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(3, 20, 4, 17, 2, generator=generator).double()
    gamma = torch.distributions.Gamma(1.5, 1.5)
    torch.manual_seed(0)
    heavy = normal / gamma.sample(normal.shape[:-1]).double().sqrt()[..., None]  # 3 degrees
    # As many dimensions as residuals have of four views.
    left = 1.25 / 2
    one = torch.ones(3).double()
    seen = torch.full(normal.shape[:-1], 0.95).double()

    def tail(error):
        return fit_tail(left * error.square().sum(-1), seen, one)

    assert float(tail(normal).max()) < 0.1
    assert float(tail(heavy).min()) > 0.15  # measured 0.2: residuals of 1.25 dimensions
    wrong = normal.clone()
    wrong[:, :, 1] *= 6
    assert float(tail(wrong).max()) < 0.15
