import math

import pytest
import torch
from rigs_fixture import BODY, normal, observed, start_near

from ptri.posterior.adjust import adjust
from ptri.posterior.equations import noise_unit
from ptri.posterior.noise import fit_errors
from ptri.structures import MANY_FRAMES


def fitted(observations, cameras, joints, **options):
    bundle, errors = adjust(observations, start_near(cameras, joints, 2.0), BODY)
    return fit_errors(observations, bundle, errors, BODY, **options)[1]


def unit(observations):
    return noise_unit(observations)[..., None, None]


def test_independent_errors_have_no_bias():
    observations, cameras, joints = observed(4, 4, 10, missing=0.0)
    errors = fitted(observations, cameras, joints)
    # Measured 0.03 to 0.1 of the noise's standard deviation over seeds 0 to 3.
    assert float(errors.bias2.sqrt().max()) < 0.25
    assert float(errors.frame_weight.min()) > 0.7


def test_biases_are_found_and_told_from_noise():
    observations, cameras, joints = observed(4, 4, 10, missing=0.0)
    bias = 2.0 * normal(4, 1, 4, 17, 2)
    biased = observations._replace(xy=observations.xy + unit(observations) * bias)
    errors = fitted(biased, cameras, joints)
    assert float(errors.bias2.sqrt().mean()) == pytest.approx(2.0, rel=0.2)
    assert float(errors.scale2.sqrt().mean()) == pytest.approx(1.0, rel=0.1)
    # What the views agree on no residual shows: the estimates share most of their variance.
    truth = bias[:, 0]
    overlap = (errors.bias * truth).sum() / (errors.bias.norm() * truth.norm())
    assert float(overlap) > 0.7


def test_frames_whose_errors_are_correlated_count_for_less():
    observations, cameras, joints = observed(4, 4, 16, missing=0.0)
    white = normal(*observations.xy.shape)
    slow = [white[:, 0]]
    for frame in range(1, 16):
        slow.append(0.7 * slow[-1] + math.sqrt(1 - 0.7**2) * white[:, frame])
    noise = 2.0 * unit(observations) * torch.stack(slow, dim=1)
    errors = fitted(observations._replace(xy=observations.xy + noise), cameras, joints)
    assert float(errors.frame_weight.mean()) < 0.5


def test_a_frame_may_count_for_less():
    observations, cameras, joints = observed(2, 3, 8)
    errors = fitted(observations, cameras, joints, correlated=False, frame_worth=0.6)
    assert torch.allclose(errors.frame_weight, torch.full((2,), 0.6).double())


def test_few_frames_have_no_bias_of_their_own():
    observations, cameras, joints = observed(2, 3, MANY_FRAMES - 1)
    errors = fitted(observations, cameras, joints)
    assert errors.bias.shape[2] == 0
    assert bool((errors.frame_weight == 1).all())
