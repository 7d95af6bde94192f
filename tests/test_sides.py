"""Left and right read anew: planted faults are found, good keypoints stay, cameras gain by it."""

import copy
import math

import pytest
import torch
from rigs_fixture import FLIP, exact, exact_scene, exchanged

from ptri import config
from ptri.evaluation.metrics import rotation_error_deg
from ptri.geometry.rays import normalise
from ptri.models.weights import find_model
from ptri.posterior.equations import Bundle, plain_errors, robust_cost
from ptri.posterior.moments import posterior_from_cameras, posterior_mean
from ptri.rig import estimate
from ptri.rig.detector import body_prior, observe
from ptri.rig.joints import fuse_body
from ptri.skeleton import H36M17
from ptri.structures import UNKNOWN_DETECTOR, Detector, take, tree_map
from ptri.verdict import readings as sides

OPTIONS = config.PosteriorConfig(num_samples=64)
RATE = 0.1
EXCHANGES, LABELLED = Detector(exchanged=RATE), Detector(exchanged=0.0)
KEEP = torch.arange(17)
NAMES = H36M17.joints


def scenes(num, frames=1, seed=0):
    """Rigs all round the person with independent noise and nothing else wrong."""
    return exact_scene(num, 4, frames, seed, noise=0.006, missing=0.0, fps=5.0)


def copied(keypoints, view, *names):
    """Keypoints with joints of an arm or leg at the other one's place."""
    xy = keypoints.xy.clone()
    for j in map(NAMES.index, names):
        xy[:, :, view, j] = xy[:, :, view, int(FLIP[j])]
    return keypoints._replace(xy=xy)


def mask(names):
    return torch.tensor([name.endswith(names) for name in NAMES])


def apart(scene, view, names, share=0.1):
    """(B,) bool: the joints lie apart from the other side's in the view, in all frames."""
    xy = scene.keypoints.xy[:, :, view]
    size = (xy.amax(-2) - xy.amin(-2)).norm(dim=-1, keepdim=True)
    far = (xy - xy[..., FLIP, :]).norm(dim=-1) > share * size
    return far[..., mask(names)].all(-1).all(-1)


def read(keypoints, scene):
    keypoints, K, (_, R, t) = tree_map(torch.Tensor.double, (keypoints, scene.K, scene.cameras))
    return sides.read_under(normalise(keypoints, K), R, t, RATE)


def test_nothing_is_read_into_good_keypoints():
    scene = scenes(40, 2)
    found = read(scene.keypoints, scene)
    moved = (found.order != KEEP) | ~found.keep
    assert moved.double().mean() < 0.002


@pytest.mark.parametrize("names", [("shoulder", "elbow", "wrist"), ("_hip", "knee", "foot")])
def test_exchanged_limbs_are_found_under_true_cameras(names):
    scene = scenes(40)
    found = read(exchanged(scene.keypoints, 2, names), scene)
    clear = apart(scene, 2, names)
    assert clear.sum() >= 8
    right = torch.where(mask(names), FLIP, KEEP)
    assert (found.order[clear, :, 2] == right).all(-1).double().mean() > 0.9
    others = found.order[:, :, [0, 1, 3]]
    assert (others == KEEP).double().mean() > 0.99


def test_copied_limbs_are_left_out():
    scene = scenes(60)
    found = read(copied(scene.keypoints, 1, "left_foot", "left_knee"), scene)
    clear = apart(scene, 1, ("knee", "foot"), 0.07)
    assert clear.sum() >= 8
    gone = ~found.keep[clear, 0, 1]
    chosen = torch.tensor([name in ("left_foot", "left_knee") for name in NAMES])
    assert (gone == chosen).all(-1).double().mean() > 0.8
    end = read(copied(scene.keypoints, 1, "right_wrist"), scene)
    clear = apart(scene, 1, ("wrist",), 0.15)
    gone = ~end.keep[clear, 0, 1]
    assert clear.sum() >= 8
    assert gone[:, NAMES.index("right_wrist")].double().mean() > 0.9
    assert gone[:, NAMES.index("left_wrist")].double().mean() < 0.05


def test_moments_are_read_and_lasting_exchanges_are_left_to_the_verdict():
    scene = scenes(16, 8)
    moment = read(exchanged(scene.keypoints, 1, frames=slice(2, 4)), scene)
    swapped = (moment.order == FLIP).all(-1)  # (B, T, V)
    assert swapped[:, 2:4, 1].double().mean() > 0.9
    swapped[:, 2:4, 1] = False
    assert swapped.double().mean() < 0.01
    lasting = read(exchanged(scene.keypoints, 1), scene)
    assert not (lasting.order == FLIP).all(-1).any()


def test_a_reading_gains_what_the_adjusted_cost_loses():
    scene = scenes(4)
    keypoints = exchanged(scene.keypoints, 2, ("_hip", "knee", "foot"))
    keypoints, K, (_, R, t), joints = tree_map(
        torch.Tensor.double, (keypoints, scene.K, scene.cameras, scene.joints3d)
    )
    stated = normalise(keypoints, K)
    body = body_prior(OPTIONS, LABELLED, stated)
    bundle = Bundle(*exact(R, t), joints, body.mean.expand(4, -1))
    reading = torch.zeros(4, 1, 4, 2, dtype=torch.long)
    reading[:, :, 2, 1] = 1  # legs exchanged
    as_read = sides._read(stated, sides._sides(reading))
    before, after = (robust_cost(bundle, o, plain_errors(o), body) for o in (stated, as_read))
    chi2 = sides._chi2(joints, stated, R, t)
    gain = sides._gains(chi2, stated, torch.ones(4).double(), RATE)[:, 0, 2, 1, 1]
    torch.testing.assert_close(before - after, gain - math.log(RATE / 5))


def test_joints_that_few_views_see_are_read_as_they_are():
    scene = scenes(8, 2)
    xy = scene.keypoints.xy.clone()
    xy[:, :, 1:, NAMES.index("left_foot")] = torch.nan
    xy[:, 1] = torch.nan  # a frame that nobody sees
    found = read(scene.keypoints._replace(xy=xy), scene)
    assert (found.order == KEEP).all() and found.keep.all()


def test_applied_readings_keep_further_joints_and_gradients():
    scene = scenes(2, 1)
    keypoints = tree_map(lambda value: torch.cat([value, value[:, :, :, :2]], 3), scene.keypoints)
    keypoints.xy.requires_grad_()
    order = KEEP.expand(2, 1, 4, 17).clone()
    order[0, 0, 1] = FLIP
    keep = torch.ones_like(order, dtype=torch.bool)
    foot = NAMES.index("left_foot")
    keep[1, 0, 2, foot] = False
    found = sides.apply_sides(keypoints, sides.Sides(order, keep))
    assert torch.equal(found.xy[0, 0, 1, :17], keypoints.xy[0, 0, 1, FLIP])
    assert torch.equal(found.covariance[0, 0, 1, :17], keypoints.covariance[0, 0, 1, FLIP])
    assert torch.equal(found.xy[:, :, :, 17:], keypoints.xy[:, :, :, 17:])
    assert torch.equal(found.xy[1, 0, 0], keypoints.xy[1, 0, 0])
    assert found.xy[1, 0, 2, foot].isnan().all() and found.confidence[1, 0, 2, foot] == 0
    found.xy[0, 0, 1, foot, 0].backward()
    assert keypoints.xy.grad.nonzero().tolist() == [[0, 0, 1, int(FLIP[foot]), 0]]


def model(detector=UNKNOWN_DETECTOR):
    made = copy.copy(find_model(None, torch.device("cpu")))
    made.detector = detector
    return made


def pair_errors(solution, scene):
    return rotation_error_deg(posterior_mean(solution.posterior)[0].float(), scene.cameras.R)


@torch.no_grad()
def test_a_view_that_a_detector_exchanged_does_not_turn_its_camera():
    scene = scenes(24, seed=3)

    def errors(keypoints, detector=EXCHANGES):
        solved = estimate.solve(model(detector), keypoints, scene.K, OPTIONS)
        return pair_errors(solved, scene)

    keypoints = exchanged(scene.keypoints, 1)
    good, read = errors(scene.keypoints), errors(keypoints)
    blind = errors(keypoints, LABELLED)
    assert (good > 20).double().mean() < 0.05
    assert (blind > 20).double().mean() > 0.25  # the fault is one
    assert (read > 20).double().mean() < 0.1
    assert read.median() < 1.2 * good.median()


@torch.no_grad()
def test_fused_joints_under_true_cameras_do_not_mind_exchanged_arms():
    scene = scenes(24)
    solver = model(EXCHANGES)
    posterior = posterior_from_cameras(scene.cameras)
    good = fuse_body(solver, scene.keypoints, scene.K, posterior).joints3d
    bad = exchanged(scene.keypoints, 3, ("shoulder", "elbow", "wrist"))
    away = (fuse_body(solver, bad, scene.K, posterior).joints3d - good).norm(dim=-1)
    clear = apart(scene, 3, ("shoulder", "elbow", "wrist"))
    assert clear.sum() >= 5 and away[clear].mean() < 1.0  # mm


@torch.no_grad()
def test_of_a_detector_that_never_exchanges_left_and_right_are_as_labelled():
    scene = scenes(2, 2)
    keypoints = exchanged(scene.keypoints, 1)
    assert estimate.solve(model(LABELLED), keypoints, scene.K, OPTIONS).sides is None
    assert estimate.solve(model(EXCHANGES), keypoints, scene.K, OPTIONS).sides.changed().any()


@torch.no_grad()
def test_overstated_covariances_are_taken_for_what_they_are():
    factor = [1.0 + 0.25 * j for j in range(17)]
    scene = scenes(4, 4)
    wide = torch.tensor(factor).square()[:, None, None]
    stated = scene.keypoints._replace(covariance=scene.keypoints.covariance * wide)
    detector = Detector(overstated=tuple(factor))
    plain = estimate.solve(model(), scene.keypoints, scene.K, OPTIONS)
    told = estimate.solve(model(detector), stated, scene.K, OPTIONS)
    expected = observe(scene.keypoints, scene.K, UNKNOWN_DETECTOR).information
    assert torch.allclose(observe(stated, scene.K, detector).information, expected, rtol=1e-5)
    errors = [pair_errors(each, scene).mean() for each in (plain, told)]
    assert abs(errors[0] - errors[1]) < 1.0  # deg; the lifter is told the stated ones
    frame, K = take((stated, scene.K), (slice(None), slice(1)))  # of few frames it says nothing
    blank, same = (
        estimate.solve(model(each), frame, K, OPTIONS) for each in (Detector(), detector)
    )
    assert torch.equal(blank.posterior.R, same.posterior.R)


def test_the_posterior_takes_one_thread_and_gives_the_others_back():
    scene = scenes(1)
    solver, before, during = model(), torch.get_num_threads(), []
    hook = solver.lifter.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            estimate.solve(solver, scene.keypoints, scene.K, OPTIONS)
            assert set(during) == {1} and torch.get_num_threads() == 2
            broken = scene.keypoints._replace(covariance=0 * scene.keypoints.covariance)
            with pytest.raises(ValueError, match="not positive definite"):
                estimate.solve(solver, broken, scene.K, OPTIONS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        hook.remove()
