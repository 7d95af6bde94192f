"""The verdict: rules on given numbers, what is measured on rigs of known truth, and a recording."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recording_fixture import sample_settings
from rigs_fixture import broken, exact, exchanged, gaussian_scene, normal

from ptri import config
from ptri.evaluation.evaluate import load_model
from ptri.evaluation.metrics import rotation_error_deg
from ptri.geometry.rays import normalise
from ptri.geometry.resection import (
    Points,
    Pose,
    nearby_poses,
    orthographic_starts,
    resect,
    square_root,
)
from ptri.geometry.rotations import rotation_angle, so3_exp
from ptri.people.scenes import generate_batch
from ptri.posterior.equations import Bundle, misfits, plain_errors
from ptri.posterior.moments import posterior_mean
from ptri.posterior.optima import Poses
from ptri.posterior.width import Together
from ptri.recordings.keypoint_files import read_recording
from ptri.recordings.solve import solve
from ptri.rig import estimate
from ptri.rig.left_out import without_misfits
from ptri.structures import Keypoints, RigPosterior, take
from ptri.verdict.examination import LASTING, Examination
from ptri.verdict.figures import Figures, spread_deg
from ptri.verdict.judge import MIN_KEYPOINTS, blame, decide, independent, judge
from ptri.verdict.readings import Reading
from ptri.verdict.verdict import Code, Verdict

LIMIT = config.PosteriorConfig().max_rotation_std_deg
FRAMES = 12


def true_solution(keypoints, K, cameras, joints, spread_deg=1.0):
    """What a solver that knows the truth would hand over."""
    B, _, V = keypoints.xy.shape[:3]
    w = normal(64, B, V, 3)
    w[:, :, 0] = 0
    R = cameras.R @ so3_exp(w * (spread_deg * torch.pi / 180 / 3**0.5))
    weights = torch.full((64, B), -np.log(64), dtype=torch.float64)
    one = torch.ones(B, dtype=torch.float64)
    nothing = R.new_zeros(64, B, 0)
    posterior = RigPosterior(R, cameras.t.expand(64, -1, -1, -1), weights, one, nothing)
    observations = normalise(keypoints, K)
    bundle = Bundle(*exact(cameras.R, cameras.t), joints, None)
    _, _, weight = misfits(bundle, observations, plain_errors(observations))
    seen = {"observations": observations, "joints": joints, "weight": weight}
    best = SimpleNamespace(
        errors=SimpleNamespace(prior=SimpleNamespace(focal=one.new_zeros(B, 0, 0)))
    )
    evidence = SimpleNamespace(**seen, scale2=one.clone(), best=best)
    modes = SimpleNamespace(mean=one[:, None], together=Together(0 * one, 0 * one, one, one))
    return SimpleNamespace(posterior=posterior, evidence=evidence, modes=modes, usual=R)


@pytest.fixture(scope="module")
def scene():
    return gaussian_scene(batch=4, views=4, frames=FRAMES, seed=3, missing=0.05)


def judged(scene, **options):
    return judge(true_solution(*scene, **options), LIMIT)


# --- resection ---------------------------------------------------------------------------------


@pytest.mark.parametrize("outliers", [0.0, 0.15])
def test_resection_finds_the_camera_from_nothing(scene, outliers):
    keypoints, K, cameras, joints = scene
    observations = take(normalise(keypoints, K), (slice(None), 0))  # a single frame
    R, t = cameras.R[:, 2], cameras.t[:, 2]
    xy, information, inlier = (value[:, 2].clone() for value in observations[:3])
    xy[torch.rand(xy.shape[:2], generator=torch.Generator().manual_seed(0)) < outliers] += 0.2
    points = Points(joints[:, 0], xy, square_root(information), inlier)
    poses = [resect(points, *start, 12) for start in zip(*orthographic_starts(points))]
    best = torch.stack([pose.cost for pose in poses]).argmin(0)
    error = torch.stack([torch.rad2deg(rotation_angle(pose.R @ R.mT)) for pose in poses])
    away = torch.stack([(pose.t - t).norm(dim=-1) for pose in poses])
    assert float(error.gather(0, best[None]).max()) < 4
    assert float(away.gather(0, best[None]).max()) < 400


def test_poses_near_an_optimum_spread_as_far_as_the_noise_says(scene):
    """Resected from other noise, poses lie where the drawn ones do."""
    _, _, cameras, joints = scene
    R, t, points3d = cameras.R[:1, 2], cameras.t[:1, 2], joints[:1, 0]
    camera = points3d @ R.mT + t[:, None]
    clean, sigma = camera[..., :2] / camera[..., 2:], 0.002
    root = (torch.eye(2) / sigma).double().expand(1, 17, 2, 2)
    inlier = torch.full((1, 17), 0.98, dtype=torch.float64)
    drawn = nearby_poses(
        Points(points3d, clean, root, inlier), Pose(R, t, t[:, 0]), normal(400, 1, 6, seed=1)
    )
    noisy = clean + sigma * normal(400, 17, 2, seed=2)
    many = Points(*(part.expand(400, *part.shape[1:]) for part in (points3d, clean, root, inlier)))
    found = resect(many._replace(xy=noisy), R.expand(400, 3, 3), t.expand(400, 3), 6)
    for mine, theirs in ((drawn[0][:, 0], found.R), (drawn[1][:, 0], found.t)):
        ratio = mine.flatten(1).std(0).norm() / theirs.flatten(1).std(0).norm()
        assert 0.85 < float(ratio) < 1.15, ratio


def test_the_second_start_mirrors_the_depth_of_flat_points():
    plane = 300 * normal(1, 17, 3)
    plane[..., 2] = 0
    R = so3_exp(torch.tensor([[0.4, 0.5, 0.1]], dtype=torch.float64))
    t = torch.tensor([[0.0, 0.0, 40000.0]], dtype=torch.float64)  # far: no perspective
    camera = plane @ R.mT + t[:, None]
    eye = 1e8 * torch.eye(2, dtype=torch.float64).expand(1, 17, 2, 2)
    points = Points(plane, camera[..., :2] / camera[..., 2:], eye, plane[..., 0] * 0 + 0.9)
    poses = [resect(points, *start, 30) for start in zip(*orthographic_starts(points))]
    for pose in poses:  # both project to the points
        seen = plane @ pose.R.mT + pose.t[:, None]
        assert float((seen[..., :2] / seen[..., 2:] - points.xy).abs().max()) < 1e-3
    apart = torch.rad2deg(rotation_angle(poses[0].R @ poses[1].R.mT))
    error = min(float(torch.rad2deg(rotation_angle(pose.R @ R.mT))) for pose in poses)
    assert float(apart) > 20 and error < 2


# --- the rules, on numbers ---------------------------------------------------------------------

GOOD = Figures(
    seen=[60, 50, 55, 60],
    used=[0.9, 0.95, 0.9, 0.85],
    noise=1.1,
    finite=True,
    doubt_deg=[[0, 1.0, 2.0, 1.5], [1.0, 0, 1.0, 1.0], [2.0, 1.0, 0, 1.0], [1.5, 1.0, 1.0, 0]],
    several=False,
    on_a_line=(False, False),
    parallax_needed_deg=(3.0, 4.0),
    parallax_deg=40.0,
    focal_unknown=False,
)


def misread(view, reading):
    return Verdict(Code.MISREAD, view, reading=reading)


WIDE = [[0, 9.0, 2.0, 1.5], *GOOD.doubt_deg[1:]]
shifted, misfit = partial(Verdict, Code.SHIFTED), partial(Verdict, Code.MISFIT)


@pytest.mark.parametrize(
    ("changes", "code", "view", "words"),
    [
        ({}, Code.ACCEPTED, None, "accepted"),
        ({"seen": [60, 5, 4, 9]}, Code.FEW_KEYPOINTS, 2, "view 2 has 4 keypoints, 6 are needed"),
        ({"seen": [60, 6, 60, 60]}, Code.ACCEPTED, None, "accepted"),
        ({"finite": False}, Code.NO_SAMPLE, None, "no sample explains"),
        ({"on_a_line": (True, True)}, Code.ON_A_LINE, None, "lie on one line"),
        ({"parallax_deg": 2.5}, Code.PARALLAX, None, "meet at 2.5 deg (median), 3.0 deg are"),
        ({"parallax_deg": 3.5}, Code.PARALLAX, None, "meet at 3.5 deg (median), 4.0 deg are"),
        ({"suspect": misread(1, Reading.ARMS)}, Code.MISREAD, 1, "left and right arm of view 1"),
        ({"suspect": misread(3, Reading.MIRRORED)}, Code.MISREAD, 3, "view 3 seems mirrored"),
        ({"suspect": shifted(2, lag=-4.2)}, Code.SHIFTED, 2, "view 2 seems shifted by -4 frames"),
        ({"suspect": misfit(0)}, Code.MISFIT, 0, "view 0 disagrees with the others"),
        ({"used": [0.9, 0.3, 0.9, 0.9]}, Code.MISFIT, 1, "view 1 disagrees"),
        ({"used": [0.5, 0.3, 0.5, 0.5]}, Code.ACCEPTED, None, "accepted"),  # all are odd
        ({"used": [0.3, 0.35, 0.3, 0.3]}, Code.OUTLIERS, None, "most of them are outliers"),
        ({"noise": 5.2}, Code.NOISE, None, "residuals are 5.2 times"),
        ({"doubt_deg": WIDE}, Code.UNCERTAIN, 0, "between view 0 and view 1 uncertain by 9.0 deg"),
        ({"doubt_deg": WIDE, "several": True}, Code.SEVERAL_MODES, None, "several modes"),
        ({"several": True}, Code.ACCEPTED, None, "accepted"),  # they hardly differ
    ],
)
def test_each_rule(changes, code, view, words):
    figures = GOOD._replace(**{name: v for name, v in changes.items() if name != "suspect"})
    suspect = changes.get("suspect")
    verdict = decide(figures, suspect, LIMIT)
    assert verdict.code is code and verdict.view == view and verdict.figures == figures
    assert words in verdict.words() and verdict.accepted == (code is Code.ACCEPTED)


def test_the_first_objection_counts():
    """Too little is said before a bad view, a bad view before noise, noise before doubt."""
    figures = GOOD._replace(seen=[3, 60, 60, 60], noise=9.0, doubt_deg=WIDE, parallax_deg=3.5)
    codes = [decide(figures, misfit(1), LIMIT).code]
    figures = figures._replace(seen=GOOD.seen)
    codes += [decide(figures, suspect, LIMIT).code for suspect in (misfit(1), None)]
    for name in ("noise", "doubt_deg"):
        figures = figures._replace(**{name: getattr(GOOD, name)})
        codes.append(decide(figures, None, LIMIT).code)
    assert codes == [Code.FEW_KEYPOINTS, Code.MISFIT, Code.NOISE, Code.UNCERTAIN, Code.PARALLAX]


def test_words_name_cameras_and_given_views():
    verdict = Verdict(Code.UNCERTAIN, 0, 2, value=9.0, limit=8.0).of_views([1, 2, 4])
    assert "between view 1 and view 4" in verdict.words()
    assert "between camera b and camera e" in verdict.words(["a", "b", "c", "d", "e"])
    whole = Verdict(Code.FEW_KEYPOINTS, 3, value=0, limit=6, rest=verdict)
    assert whole.words().endswith("; the others: " + verdict.words())


def examination(readings=LASTING, num_points=100, **changes):
    """Of one rig of four views whose keypoints fit as they are, at 1 nat a point."""
    own = torch.ones(1, 4)
    gain = torch.full((1, 4, len(readings) + 1), -3.0)  # the readings, two poses, another clock
    parts = {"readings": readings, "own": own, "gain": gain}
    parts |= {"points": torch.full_like(gain, num_points), "lag": 0 * own, "rate": own}
    return Examination(**{**parts, **changes})


def with_gain(plain, view, way, gain, **changes):
    """One view fits 0.7 nats a point worse, and another way of taking it saves some of it."""
    own, gains = plain.own.clone(), plain.gain.clone()
    own[0, view], gains[0, view, way] = 1.7, gain
    return plain._replace(own=own, gain=gains, **changes)


TWO_POSES, CLOCK = len(LASTING) - 1, len(LASTING)


def blamed(examination, worth=1 / 7):
    return blame(examination, torch.full_like(examination.own, worth))


def test_the_view_that_fits_best_in_another_way_is_blamed():
    plain = examination()
    assert blamed(plain) == [None]
    (verdict,) = blamed(with_gain(plain, 2, 0, 0.8))
    assert verdict[:4] == misread(2, Reading.EXCHANGED)[:4] and abs(verdict.value - 80 / 7) < 1e-4
    lag, rate = torch.tensor([[0.0, 3.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, -1.0, 0.5]])
    for view, words in (
        (1, "view 1 seems shifted by +3 frames (11 nats)"),
        (2, "view 2 seems to run backwards (11 nats)"),
        (3, "view 3 seems to run at 2 times the others' frame rate (11 nats)"),
    ):
        (verdict,) = blamed(with_gain(plain, view, CLOCK, 0.8, lag=lag, rate=rate))
        assert verdict.words() == f"bad camera: {words}"


def test_a_second_pose_pays_for_its_six_unknowns():
    """Half the logarithm of 14 points for each: eight nats."""
    for gain, expected in ((0.8, None), (1.0, Code.MOVED)):
        (verdict,) = blamed(with_gain(examination(), 1, TWO_POSES, gain))
        assert (
            verdict is None if expected is None else (verdict.code, verdict.view) == (expected, 1)
        )


def test_blame_needs_evidence():
    """Four nats: of 100 points of which one in seven counts, 0.28 of one a point."""
    for gain, found in ((0.25, False), (0.31, True)):
        odd = with_gain(examination(), 1, 0, gain)
        odd.own[0, 1] = 1.3
        assert (blamed(odd) != [None]) is found
        assert blamed(odd, 1 / 14) == [None]
    # What explains little of the misfit is another fault.
    odd = with_gain(examination(), 1, 0, 0.52)
    assert blamed(odd) != [None]
    odd.own[0, 1] = 2.0
    assert blamed(odd) == [None]
    odd.own[0, 1] = 4.5  # it fits nowhere
    assert blamed(odd) == [misfit(1)]
    nowhere = examination(own=torch.full((1, 4), 4.5))  # nor do the others
    assert blamed(nowhere) == [None]
    # Where another view fits badly too, neither is blamed alone.
    two = with_gain(examination(), 1, 0, 0.6)
    assert blamed(two) != [None]
    two.own[0, 3] = 3.5
    assert blamed(two) == [None]


def test_keypoints_count_by_how_they_go_together_and_how_certain_the_others_are(scene):
    solution = true_solution(*scene)
    spread = torch.zeros(4, 4, 4)
    assert torch.allclose(independent(solution, spread, LIMIT), torch.ones(4, 4).double())
    spread[:, 1, 2] = spread[:, 2, 1] = LIMIT
    worth = independent(solution, spread, LIMIT)
    assert torch.allclose(worth, torch.tensor([0.5, 1.0, 1.0, 0.5]).double().expand(4, 4))
    one = torch.ones(4).double()
    together = {
        "frames": Together(one, 0 * one, one, one),
        "joints": Together(0 * one, one, one, one),
    }
    worth = {}
    for name, part in together.items():
        solution.modes.together = part
        worth[name] = independent(solution, 0 * spread, LIMIT)[:, 0]
        assert float(worth[name].min()) > 1 / max(FRAMES, 17) and float(worth[name].max()) < 0.9
    solution.modes.together = Together(one, one, one, one)
    both = independent(solution, 0 * spread, LIMIT)[:, 0]
    assert torch.allclose(both, worth["frames"] * worth["joints"])


# --- what is measured, on rigs of known truth --------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "view", "expected", "least"),
    [
        ("exchanged", 0, (Code.MISREAD, Reading.EXCHANGED, 0), 4),
        ("mirrored", 3, (Code.MISREAD, Reading.MIRRORED, 0), 4),
        ("mirrored exchanged", 1, (Code.MISREAD, Reading.MIRRORED_EXCHANGED, 0), 4),
        # The clips are at 2 frames a second, so that nobody stands still for three frames.
        ("shifted", 2, (Code.SHIFTED, None, 3), 4),
        ("another person", 0, (Code.MISFIT, None, 0), 3),
    ],
)
def test_a_bad_view_is_named(scene, kind, view, expected, least):
    keypoints, K, cameras, joints = scene
    verdicts = judged((broken(keypoints, K, view, kind), K, cameras, joints))
    assert all(verdict.view == view and not verdict.accepted for verdict in verdicts)
    named = [(verdict.code, verdict.reading, round(verdict.lag)) for verdict in verdicts]
    assert named.count(expected) >= least, verdicts


def test_one_frame_with_exchanged_arms():
    keypoints, K, cameras, joints = gaussian_scene(batch=8, views=4, frames=1, seed=5)
    assert all(verdict.accepted for verdict in judged((keypoints, K, cameras, joints)))
    keypoints = exchanged(keypoints, 1, ("shoulder", "elbow", "wrist"))
    # The solver turned the camera about the person to explain the arms.
    turn = so3_exp(torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64))
    cameras.R[:, 1] = turn @ cameras.R[:, 1]
    verdicts = judged((keypoints, K, cameras, joints))
    named = [(verdict.view, verdict.reading) == (1, Reading.ARMS) for verdict in verdicts]
    assert sum(named) >= 6  # measured: 8


def test_shifts_are_told_in_the_frames_of_the_recording():
    keypoints, K, cameras, joints = gaussian_scene(4, 4, FRAMES, seed=3, fps=6.0)
    keypoints = broken(keypoints, K, 1, "shifted")
    keep = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 9, 11])  # frames left out by the choice
    some = Keypoints(*(value[:, keep] for value in keypoints))
    solution = true_solution(some, K[:, keep], cameras, joints[:, keep])
    for step in (1, 2):
        for verdict in judge(solution, LIMIT, times=step * keep):
            assert verdict.code is Code.SHIFTED and verdict.view == 1
            assert abs(verdict.lag - 3 * step) < 0.8 * step


def test_too_few_keypoints(scene):
    keypoints, *rest = scene
    xy = keypoints.xy.clone()
    xy[0, :, 2] = torch.nan
    xy[0, 0, 2, : MIN_KEYPOINTS - 1] = 500.0
    verdicts = judged((keypoints._replace(xy=xy), *rest))
    assert [verdict.accepted for verdict in verdicts] == [False, True, True, True]
    assert (verdicts[0].code, verdicts[0].view, verdicts[0].value) == (Code.FEW_KEYPOINTS, 2, 5)


def test_wide_posteriors_several_modes_and_keypoints_that_disagree(scene):
    assert {verdict.code for verdict in judged(scene, spread_deg=15.0)} == {Code.UNCERTAIN}
    solution = true_solution(*scene)
    far = so3_exp(torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64))
    solution.posterior.R[:16, :, 3] = far @ solution.posterior.R[:16, :, 3]
    assert {verdict.code for verdict in judge(solution, LIMIT)} == {Code.SEVERAL_MODES}
    solution = true_solution(*scene)
    solution.evidence.scale2[0] = 50.0
    solution.evidence.weight[1] *= 0.3
    solution.evidence.weight[2, :, 3] *= 0.2
    solution.posterior.log_weights[:, 3] = torch.nan
    codes = [verdict.code for verdict in judge(solution, LIMIT)]
    assert codes == [Code.NOISE, Code.OUTLIERS, Code.MISFIT, Code.NO_SAMPLE]


def test_two_views_and_one_frame_stay_finite():
    for views, frames in ((2, 1), (2, 6), (3, 1), (3, 2), (4, FRAMES)):
        scene = gaussian_scene(batch=2, views=views, frames=frames)
        assert all(verdict.accepted for verdict in judged(scene)), (views, frames)
        nothing = scene[0]._replace(xy=torch.full_like(scene[0].xy, torch.nan))
        assert {verdict.code for verdict in judged((nothing, *scene[1:]))} == {Code.FEW_KEYPOINTS}


# --- the whole pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    given = ["init.checkpoint_3d=checkpoints/ptri_3d.pt"]
    options = config.load("configs/generated_keypoints.yaml", given)
    return load_model(options, images=False).eval(), options


def among(posterior, truth, views):
    """Worst rotation error of the pairs among some views, (B,) deg."""
    R, _ = posterior_mean(posterior)
    return rotation_error_deg(R[:, views], truth[:, views].double()).amax(-1)


@pytest.mark.parametrize("view", [0, 2])
def test_a_view_of_somebody_else_does_not_bend_the_others(model, view):
    model, options = model
    scene = generate_batch(options, 4, 0, 3, 4, 6)
    keypoints = broken(scene.keypoints, scene.K, view, "another person")
    with torch.no_grad():
        solution = estimate.solve(model, keypoints, scene.K, options.posterior)
    # Rig 0's keypoints are so uncertain that the other person, who stands alike, fits them.
    others = [v for v in range(4) if v != view]
    for verdict in solution.verdicts[1:]:
        assert (verdict.code, verdict.view) == (Code.MISFIT, view)
    posterior = solution.posterior
    assert float(among(posterior, scene.cameras.R, others)[1:].max()) < 10
    assert float(spread_deg(posterior)[0][1:, others][:, :, others].max()) < 15
    eye = torch.eye(3, dtype=torch.float64).expand_as(posterior.R[:, :, 0])
    assert torch.allclose(posterior.R[:, :, 0], eye)
    assert torch.isfinite(posterior.log_weights.logsumexp(0)).all()


@pytest.mark.parametrize("view", [0, 3])
def test_the_others_are_solved_again_only_where_that_moves_them(model, view, monkeypatch):
    model, options = model
    scene = generate_batch(options, 4, 0, 2, 4, 6)
    with torch.no_grad():
        solution = estimate.solve(model, scene.keypoints, scene.K, options.posterior).rig
        lifted = model.lift(scene.keypoints, scene.K)
    poses = Poses(lifted.joints3d.double(), lifted.sigma.double())
    others = [v for v in range(4) if v != view]
    R = solution.posterior.R.clone()  # ten degrees in every sample: far outside the region
    turn = so3_exp(torch.tensor([0.0, 0.17, 0.0], dtype=torch.float64))
    R[:, 0, others[1]] = turn @ R[:, 0, others[1]]
    log_weights = solution.posterior.log_weights.clone().requires_grad_()
    posterior = solution.posterior._replace(R=R, log_weights=log_weights)
    solution = solution._replace(posterior=posterior)
    misfit, fine = Verdict(Code.MISFIT, view), Verdict(Code.NOISE)
    mended = without_misfits(solution, [misfit, fine], options.posterior, 0, 1.0, poses)
    assert torch.equal(mended.posterior.R[:, 1], R[:, 1])
    mended.posterior.log_weights[0].sum().backward()  # of rigs that keep their samples
    assert log_weights.grad[0].tolist() == [0, 1]
    with torch.no_grad():
        errors = [float(among(p.posterior, scene.cameras.R, others)[0]) for p in (solution, mended)]
        in_all = float(among(mended.posterior, scene.cameras.R, [0, 1, 2, 3])[0])
    assert errors[0] > 10 and errors[1] < 6  # measured 11.3 and at most 4.7
    assert in_all < 8  # measured 6.2: the view left out stands where the others' joints put it
    monkeypatch.setattr("ptri.rig.left_out.REGION_90", 100.0)
    kept = without_misfits(solution, [misfit, fine], options.posterior, 0, 1.0, poses)
    assert torch.equal(kept.posterior.R, R)


# --- a real detector ---------------------------------------------------------------------------


def real_case(recording, view, kind):
    """A recording with one camera's keypoints exchanged, mirrored or 15 frames late."""
    xy, confidence = recording.xy.copy(), recording.confidence.copy()
    if kind == "mirrored":
        xy[:, view, :, 0] = recording.cameras[view].size[0] - 1 - xy[:, view, :, 0]
    if kind == "exchanged":
        flip = list(recording.skeleton.flip)
        xy[:, view], confidence[:, view] = xy[:, view][:, flip], confidence[:, view][:, flip]
    if kind == "shifted":
        for value in (xy, confidence):
            value[15:, view] = value[:-15, view].copy()
        xy[:15, view], confidence[:15, view] = np.nan, 0
    return recording._replace(xy=xy, confidence=confidence)


@pytest.fixture(scope="module")
def real():
    options = sample_settings("recording.yaml")
    model = load_model(options, images=False)
    return read_recording(options.data.root, options.recording), model, options


EACH = [(view, kind) for kind in ("mirrored", "exchanged", "shifted") for view in range(4)]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in EACH if case != (1, "exchanged")]


def test_a_real_recording_is_accepted(real):
    recording, model, options = real
    assert solve(model, recording, options).estimate.reason == "accepted"


@pytest.mark.parametrize(("view", "kind"), [(1, "exchanged"), *SLOW])
def test_a_bad_camera_of_a_real_recording_is_named(real, view, kind):
    recording, model, options = real
    verdict = solve(model, real_case(recording, view, kind), options).estimate.verdict
    if kind == "shifted":
        # Every second frame is solved from: half of a step is 1. Measured: 0.58 at most.
        assert verdict.code is Code.SHIFTED and abs(verdict.lag - 15) < 0.8
    else:
        reading = Reading.MIRRORED if kind == "mirrored" else Reading.EXCHANGED
        assert verdict.code is Code.MISREAD and verdict.reading is reading
    assert verdict.view == view
    assert f"camera {recording.names[view]}" in verdict.words(recording.names)
