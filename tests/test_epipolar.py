"""Five-point rigs against generated rigs of several families."""

import numpy as np
import pytest
import torch
from rigs_fixture import scene

from ptri.evaluation.metrics import n_mpjpe, rotation_error_deg
from ptri.geometry.epipolar import five_point_rigs, triangulate
from ptri.skeleton import H36M17

TOLERANCE_DEG = 3.0  # single rigs of the ring and dome families: measured up to 0.9
FAMILIES = ["ring", "wall", "corner", "dome", "two_phones"]


def seen(family, views, seed=0, frames=12):
    """xy, K, R, joints of a rig with independent noise, about 1 px at 435 px body height."""
    truth = scene(frames, views, seed, noise=0.002, missing=0.1, fps=1.0, family=family)
    K = np.tile(truth.K.numpy(), (frames, 1, 1, 1))
    return truth.xy.numpy(), K, truth.R, truth.joints


def worst_deg(candidate, R):
    return float(rotation_error_deg(torch.from_numpy(candidate.R), R).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_recovers_generated_rigs(family):
    views = 2 if family == "two_phones" else 4
    worst, structure = [], []
    for seed in range(8):
        xy, K, R, joints = seen(family, views, seed)
        best = five_point_rigs(xy, K)[0]
        worst.append(worst_deg(best, R))
        known = np.isfinite(best.joints).all(-1)
        assert np.array_equal(known, np.isfinite(xy).all(-1).sum(1) >= 2)
        points = torch.from_numpy(best.joints.reshape(1, -1, 3))
        truth = torch.where(torch.isnan(points), torch.nan, joints.reshape(1, -1, 3))
        shift = H36M17.root - int(np.flatnonzero(known.ravel())[0])  # a root that is seen
        structure.append(float(n_mpjpe(points.roll(shift, 1), truth.roll(shift, 1))))
    # Measured over 12 rigs a family: medians 0.5 to 1.5 deg and 7 to 18 mm; the worst are people
    # who hardly move before cameras close to each other (5 to 42 deg).
    assert np.median(worst) < 2.5, worst
    assert np.median(structure) < 40, structure


def test_gross_outliers_and_control():
    """5 % of the points anywhere: still right; a view whose joints are shuffled: not."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        xy, K, R, _ = seen("ring", 4, seed, frames=16)
        wild = (rng.random(xy.shape[:-1]) < 0.05) & np.isfinite(xy).all(-1)
        dirty = np.where(wild[..., None], rng.uniform(0, 1000, xy.shape), xy)
        assert worst_deg(five_point_rigs(dirty, K)[0], R) < TOLERANCE_DEG
        shuffled = xy.copy()
        shuffled[:, 2] = xy[:, 2][:, rng.permutation(xy.shape[2])]
        control = five_point_rigs(shuffled, K)
        assert not control or worst_deg(control[0], R) > 10


def test_candidates_are_ranked_and_repeatable():
    xy, K, _, _ = seen("dome", 5)
    first, second = (five_point_rigs(xy, K, seed=3, num_pairs=4) for _ in range(2))
    assert len(first) == 4
    assert [c.error for c in first] == sorted(c.error for c in first)
    for a, b in zip(first, second):
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))
    for c in first:
        np.testing.assert_allclose(c.R @ c.R.swapaxes(-1, -2), [np.eye(3)] * 5, atol=1e-9)
        np.testing.assert_allclose(c.R[0], np.eye(3), atol=1e-12)
        np.testing.assert_allclose(c.t[0], 0, atol=1e-12)
        assert np.nanmedian(np.linalg.norm(c.joints, axis=-1)) == pytest.approx(1.0)


def test_confidence_zero_is_not_seen():
    xy, K, R, _ = seen("ring", 3)
    confidence = np.ones(xy.shape[:-1])
    confidence[:, 1, ::2] = 0.0
    spoiled = np.where(confidence[..., None] > 0, xy, 500.0)
    assert worst_deg(five_point_rigs(spoiled, K, confidence)[0], R) < TOLERANCE_DEG


def test_nothing_to_go_on():
    """Too few points, no points, all points in one place: no candidate, no exception."""
    K = np.tile(np.diag([1000.0, 1000.0, 1.0]), (3, 1, 1))
    rng = np.random.default_rng(0)
    few = np.full((1, 3, 17, 2), np.nan)
    few[:, :, :4] = rng.normal(size=(1, 3, 4, 2))
    assert five_point_rigs(few, K) == []
    assert five_point_rigs(np.full((2, 3, 17, 2), np.nan), K) == []
    assert five_point_rigs(np.zeros((0, 3, 17, 2)), K) == []
    for candidate in five_point_rigs(np.ones((1, 3, 17, 2)), K):
        assert np.isfinite(candidate.R).all()


def test_triangulation_is_exact_without_noise():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 3)) + np.array([0.0, 0.0, 6.0])
    R = np.array([np.eye(3), [[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]]])
    t = np.array([[0, 0, 0], [3.0, 0.1, 1.0]])
    camera = points @ R.swapaxes(1, 2) + t[:, None]
    joints, fixed = triangulate(camera[..., :2] / camera[..., 2:], np.ones((2, 20), bool), R, t)
    assert fixed.all()
    np.testing.assert_allclose(joints, points, atol=1e-5)  # the ridge moves points by 1e-9 or so
