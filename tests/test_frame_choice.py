"""Frames chosen by information beat frames evenly spread, and strange keypoints do not attract."""

import time

import torch
from rigs_fixture import Truth, estimate, normal, rotation_error_deg, scene

from ptri.evaluation.pictures import spread
from ptri.rig.check import RigInput
from ptri.rig.frames import choose_frames, greedy, information, log_det
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, cat, take


def given(truth):
    keypoints = Keypoints(truth.xy, truth.covariance, truth.confidence)
    return RigInput(keypoints, truth.K.expand(len(truth.xy), *truth.K.shape), H36M17)


def mostly_still(seed):
    """120 frames; but for frames 60 to 83 a person stands still. Fresh noise in every frame."""
    truth = scene(120, seed=seed, fps=5.0, missing=0.0)
    still = [*range(60), *range(84, 120)]
    sigma = truth.covariance[60].diagonal(dim1=-2, dim2=-1).sqrt()
    truth.xy[still] = truth.xy[60] + 0.7 * sigma * normal(len(still), *sigma.shape, seed=seed)
    covariance = truth.covariance.clone()
    covariance[still] = truth.covariance[60]
    return truth._replace(covariance=covariance)


def test_better_than_even_spread_where_the_person_mostly_stands_still():
    errors, moving = torch.zeros(5, 2), 0
    for seed in range(5):
        truth = mostly_still(seed)
        chosen = choose_frames(given(truth), 8)
        moving += sum(60 <= f < 84 for f in chosen)
        for column, frames in enumerate((chosen, spread(120, 8))):
            some = Truth(*(part[frames] if len(part) == 120 else part for part in truth))
            error = rotation_error_deg(estimate(some, num_samples=128), truth)[1:]
            errors[seed, column] = error.square().mean().sqrt()
    assert moving / 5 > 3  # an even spread has 1.6 of the moving frames
    chosen, even = errors.median(0).values
    assert chosen < 0.8 * even, (chosen, even)


def test_frames_with_outliers_do_not_attract():
    """Gross errors are as telling as nothing: frames that have them are not preferred."""
    truth = scene(40, seed=0, fps=5.0)
    generator = torch.Generator().manual_seed(0)
    bad = torch.arange(40) % 4 == 0
    hit = bad[:, None, None] & (torch.rand(truth.xy.shape[:3], generator=generator) < 0.25)
    truth.xy[hit] += 60 * torch.randn(int(hit.sum()), 2, generator=generator, dtype=torch.float64)
    assert bad[choose_frames(given(truth), 12)].sum() <= 2  # by chance 3 of 12; found: 0


def test_choice_is_greedy_exactly():
    """The shortcut by the trace gives the choice of the full search."""
    truth = scene(25, views=3, seed=1, fps=5.0)
    each = information(given(truth))
    when = 1000 * torch.arange(25)  # far apart: every frame is fresh
    chosen = greedy(each, when, 6).tolist()
    total, naive = torch.zeros(3, 9, 9, dtype=torch.float64), []
    for _ in range(6):
        gain = [log_det(total + each[f]) if f not in naive else -torch.inf for f in range(25)]
        naive.append(int(torch.tensor(gain).argmax()))
        total = total + each[naive[-1]]
    assert chosen == naive


def test_resolution_and_view_order_do_not_matter():
    truth = scene(30, seed=0, fps=5.0)
    expected = choose_frames(given(truth), 8)
    K = 3 * truth.K
    K[:, 2, 2] = 1
    scaled = truth._replace(xy=3 * truth.xy, covariance=9 * truth.covariance, K=K)
    assert choose_frames(given(scaled), 8) == expected
    moved = take(given(truth), (slice(None), [2, 0, 3, 1]))
    assert choose_frames(moved, 8) == expected


def test_unusable_frames_are_never_chosen():
    truth = scene(12, seed=0)
    truth.xy[3], truth.xy[5, 1:], truth.xy[7, :, 5:] = torch.nan, torch.nan, torch.nan
    usable = [0, 1, 2, 4, 6, 8, 9, 10, 11]
    for count in (1, 2, 7, 50):
        chosen = choose_frames(given(truth), count)
        assert len(chosen) == min(count, 9) and chosen == sorted(set(chosen) & set(usable))
    assert choose_frames(given(truth._replace(xy=torch.nan * truth.xy)), 4) == []


def test_a_view_that_rarely_sees_the_person_is_not_forgotten():
    truth = scene(60, seed=0, fps=5.0)
    present = torch.zeros(60, dtype=torch.bool)
    present[[20, 21, 22, 50]] = True
    truth.xy[~present, 3] = torch.nan
    assert present[choose_frames(given(truth), 6)].sum() >= 2


def test_thousands_of_frames_are_quick():
    truth = scene(50, seed=0, fps=5.0)
    start = time.process_time()
    chosen = choose_frames(cat([given(truth)] * 60), 50)
    assert len(set(chosen)) == 50
    assert time.process_time() - start < 10  # found: 1
