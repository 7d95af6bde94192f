"""The benchmark's cases, bounds, scores, peers and tables on tiny settings."""

import json
import modulefinder
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark import cache, rigs
from benchmark.commands import main
from benchmark.figures import targets_table
from benchmark.rig import adjust, peers, tables
from benchmark.rig.bound import bound, bound_with_body
from benchmark.rig.cases import BIAS, Cell, make_cases
from benchmark.rig.grid import METHODS, Part, make_grid
from benchmark.rig.ours import make_model, solve
from benchmark.rig.run import PEERS, Options, Result, make_method, run_grid
from benchmark.rig.scores import Answer, flatten, pool, score, summarise
from benchmark.rig.targets import check
from benchmark.speed.rig import Size, exponent, make_call
from benchmark.timing import time_calls
from scipy.stats import f as fisher

from ptri import estimate_rig
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.geometry.rotations import skew, so3_exp
from ptri.posterior.body import bone_vectors, load_body_prior
from ptri.structures import Cameras, Keypoints, take


def residuals(cases):
    """Keypoints minus projections (B, T, V, J, 2) px, NaN where not clean."""
    cameras = Cameras(cases.K[:, :1], *(part.unsqueeze(1) for part in cases.cameras[1:]))
    error = cases.keypoints.xy - project(cases.joints3d, cameras)
    return torch.where(cases.clean.unsqueeze(-1), error, torch.nan)


# --- cases -----------------------------------------------------------------------------------


def test_cases_repeat_and_people_depend_on_neither_batch_nor_errors():
    cell = Cell("wall", 3)
    all_, part = make_cases(cell, 5, seed=7), make_cases(cell, 2, seed=7, first=3)
    again = make_cases(cell, 5, seed=7)
    for name in ("K", "joints3d", "sigma", "clean"):
        assert torch.equal(getattr(all_, name), getattr(again, name))
        assert torch.equal(getattr(all_, name)[3:], getattr(part, name))
    for a, b in zip(take(all_, slice(3, 5)).keypoints, part.keypoints):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    other = make_cases(cell, 5, seed=8)
    assert not torch.equal(all_.joints3d, other.joints3d)
    worse = make_cases(cell._replace(noise=8.0, outliers=0.2), 5, seed=7)
    assert torch.equal(all_.joints3d, worse.joints3d)
    assert torch.equal(all_.cameras.R, worse.cameras.R)


def test_errors_are_of_the_stated_kind():
    gaussian = make_cases(Cell("ring4", 10, noise=3.0, outliers=0.05), 12)
    error = residuals(gaussian)
    assert abs(error[~error.isnan()].std() - 3.0) < 0.1
    seen = gaussian.keypoints.confidence > 0
    wild = (seen & ~gaussian.clean).double().sum() / seen.double().sum()
    assert abs(wild - 0.05) < 0.01
    assert abs((~seen).double().mean() - 0.1) < 0.03  # 10 % missing, few outside the image
    assert torch.equal(torch.isfinite(gaussian.keypoints.xy).all(-1), seen)

    # Student's t of the same scale: half of the points as near as its law says, some much farther.
    heavy = residuals(make_cases(Cell("ring4", 10, outliers=0.0, tails=3), 12)).norm(dim=-1)
    heavy = heavy[~heavy.isnan()] / 3.0
    for share in (0.5, 0.9, 0.98):  # half the squared distance follows Fisher's law
        level = (2 * fisher.ppf(share, 2, 3)) ** 0.5
        assert abs((heavy < level).double().mean() - share) < 0.02, share

    detector = residuals(
        make_cases(Cell("ring4", 30, errors="detector", outliers=0.0, missing=0.0), 12)
    )
    offset = detector.nanmean(1, keepdim=True)
    moving = (detector - offset)[:, 1:] * (detector - offset)[:, :-1]
    lag = moving.nanmean() / (detector - offset).square().nanmean()
    assert 0.7 < lag < 0.92  # 0.9 less what the mean of 30 frames takes away
    assert abs(offset[~offset.isnan()].std() - BIAS) < 0.6
    # Independent errors have neither.
    plain = error - error.nanmean(1, keepdim=True)
    assert abs((plain[:, 1:] * plain[:, :-1]).nanmean() / plain.square().nanmean()) < 0.2


def test_every_family_has_its_views():
    for name in rigs.choose(["all"]):
        cases = make_cases(Cell(name, 1), 2)
        assert cases.K.shape[2] == rigs.num_views(name)
        assert (cases.clean.double().mean((1, 3)) > 0.4).all(), name
        assert torch.equal(cases.cameras.R[:, 0], torch.eye(3).double().expand(2, 3, 3))


# --- bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_body", [False, True])
def test_bound_agrees_with_dense_algebra(with_body):
    """The whole information matrix, inverted by brute force; one coordinate fixes the scale where
    no body does."""
    cell = Cell("wall", 2, missing=0.3)
    cases = make_cases(cell, 1)
    R, t, joints = cases.cameras.R[0, 1:], cases.cameras.t[0, 1:], cases.joints3d[0]
    body = load_body_prior().to("cpu", torch.float64)
    spread = torch.linalg.cholesky(body.covariance)
    used = (cases.clean.sum(2, keepdim=True) >= 2) | with_body
    weight = (cases.clean & used)[0].double().unsqueeze(-1) / cases.sigma[0, :, None, None]
    sizes = (18, joints.numel(), len(body.mean))

    def whitened(step):
        """Keypoints and bones after cameras 1.. and joints moved (rad, m) and bones grew (log)."""
        cameras, move, growth = step.split(sizes)
        turn, shift = cameras.reshape(3, 6).split(3, -1)
        moved = joints + 1e3 * move.reshape(joints.shape)
        eye, zero = torch.eye(3).double()[None], torch.zeros(1, 3).double()
        turned = torch.cat([eye, torch.linalg.matrix_exp(skew(turn)) @ R])
        rig = Cameras(cases.K[0], turned[None], torch.cat([zero, t + 1e3 * shift])[None])
        seen = project(moved, rig) * weight
        bones = (bone_vectors(moved, body)[0].log() - growth) / body.slack
        shared = torch.linalg.solve_triangular(spread, growth[:, None], upper=False)
        law = (bones, shared, 1e-2 * move) if with_body else ()  # joints within 100 m
        return torch.cat([part.flatten() for part in (seen, *law)])

    slope = torch.autograd.functional.jacobian(whitened, torch.zeros(sum(sizes)).double())
    keep = torch.ones(sum(sizes), dtype=torch.bool)
    if not with_body:
        keep[18:] = torch.cat([used[0, :, 0].flatten().repeat_interleave(3), torch.zeros(16) > 0])
        keep[3 + int(t[0].abs().argmax())] = False  # the scale: one coordinate of view 1
    dense = torch.zeros(len(keep), len(keep)).double()
    kept = keep.nonzero().squeeze(1)
    dense[kept[:, None], kept] = torch.linalg.inv((slope.T @ slope)[kept][:, kept])
    limit = bound_with_body(cases, body) if with_body else bound(cases, cell)
    for view in range(3):
        brute = torch.rad2deg(dense.diagonal()[6 * view : 6 * view + 3].sum().sqrt())
        torch.testing.assert_close(limit[0, view], brute, rtol=1e-4, atol=0)


def test_bound_of_errors_that_last():
    """By hand where T = 1; larger than that of independent errors else."""
    plain, one = Cell("ring4", 1), Cell("ring4", 1, errors="detector")
    many = Cell("ring4", 8, errors="detector")
    cases = make_cases(one, 2)
    wider = cases._replace(sigma=cases.sigma * (9 + BIAS**2) ** 0.5 / 3)
    torch.testing.assert_close(bound(cases, one), bound(wider, plain))
    cases = make_cases(many, 2)
    assert (bound(cases, many) > 1.3 * bound(cases, plain)).all()


# --- scores ----------------------------------------------------------------------------------


def answer(cases, turn_deg=0.0, scale=1.0, noise=0.0):
    """The truth, with every view but the first turned, at another scale, with noisy joints."""
    turn = so3_exp(torch.tensor([0.0, torch.pi / 180 * turn_deg, 0.0]).double())
    R = cases.cameras.R.clone()
    R[:, 1:] = turn @ R[:, 1:]
    generator = torch.Generator().manual_seed(0)
    error = noise * torch.randn(cases.joints3d.shape, generator=generator, dtype=torch.float64)
    return Answer(R, scale * cases.cameras.t, scale * (cases.joints3d + error), metric=True)


def test_a_perfect_method_scores_zero():
    cases = make_cases(Cell("wall", 3), 4)
    figures = summarise(flatten(score(cases, answer(cases, scale=1.25))))
    assert figures["rms_deg"] < 1e-5 and figures["failures"] == 0
    assert figures["n_mpjpe"] < 1e-6  # after one scale
    assert abs(figures["scale"] - 0.25) < 1e-9


def test_a_wrong_method_fails():
    cases = make_cases(Cell("wall", 2), 4)
    figures = summarise(flatten(score(cases, answer(cases, turn_deg=12.0, noise=30.0))))
    assert 0.4 < figures["failures"] < 0.6  # 3 of 6 pairs contain view 0; the others turn together
    assert figures["failed_rigs"] == 1
    assert 40 < figures["n_mpjpe"] < 90
    # One joint metres away must not set the scale of all others.
    odd = answer(cases, scale=1.25)
    odd.joints3d[:, 0, 0] += 5000.0
    assert abs(summarise(flatten(score(cases, odd)))["scale"] - 0.25) < 1e-3
    none = answer(cases)._replace(R=torch.full_like(cases.cameras.R, torch.nan))
    lost = none._replace(joints3d=torch.full_like(cases.joints3d, torch.nan))
    figures = summarise(flatten(score(cases, lost)))
    assert figures["failures"] == 1 and figures["n_mpjpe"] == float("inf")


def test_pooling_weighs_every_pair():
    two, four = (make_cases(Cell(name, 1), 3) for name in ("two60", "ring4"))
    flat = [flatten(score(c, answer(c, turn))) for c, turn in ((two, 20.0), (four, 0.0))]
    assert abs(summarise(pool(flat))["failures"] - 3 / 21) < 1e-12
    assert summarise(pool(flat))["cases"] == 6


# --- peers -----------------------------------------------------------------------------------


def figures_of(peer, cases):
    return summarise(flatten(score(cases, peers.run_peer(peer, cases))))


@pytest.mark.parametrize("name", ["opencv", "poselib", "humancalib"])
def test_peers_solve_many_frames(name):
    if name != "opencv":
        pytest.importorskip({"humancalib": "humancalib.calibration.ba"}.get(name, name))
    clean = {"outliers": 0.0, "missing": 0.0} if name == "humancalib" else {}
    cases = make_cases(Cell("ring4", 20, noise=1.0, **clean), 1 if clean else 2)
    ceiling = figures_of(peers.calibrated, cases)
    assert ceiling["rms_deg"] < 1e-5 and ceiling["n_mpjpe"] < 20
    found = figures_of(PEERS[name](), cases)
    assert found["rms_deg"] < 1.0 and found["n_mpjpe"] < 1.3 * ceiling["n_mpjpe"]


@pytest.mark.parametrize("loss", adjust.LOSSES)
def test_bundle_adjustment_reaches_the_bound(loss):
    """Started from the truth on Gaussian noise; the control starts with views exchanged."""
    pytest.importorskip("pycolmap")
    cell = Cell("ring4", 10, outliers=0.0)
    cases = make_cases(cell, 3)
    limit = bound(cases, cell).numpy()
    answers = peers.run_peer(adjust.bundle_adjustment(loss, "truth"), cases)
    figures = summarise(flatten(score(cases, answers), limit))
    # 18 pairs; measured over 5 seeds: 0.8 to 1.5.
    assert 0.5 < figures["over_bound"] < 2.0
    cases = take(cases, slice(0, 1))
    moved = cases._replace(keypoints=Keypoints(*(v.roll(1, 2) for v in cases.keypoints)))
    assert figures_of(adjust.bundle_adjustment(loss, "truth"), moved)["failures"] > 0.3


def test_a_missing_library_is_reported_not_raised(monkeypatch, tmp_path):
    def absent(name):
        raise peers.NotInstalledError(f"{name}: not here")

    monkeypatch.setattr(peers, "library", absent)
    monkeypatch.setattr("benchmark.rig.run.make_method", make_method.__wrapped__)
    grid = [Part(Cell("two60", 1), ("poselib", "calibrated"))]
    results = {r.method: r for r in run_grid(grid, Options(2), tmp_path)}
    assert "not here" in results["poselib"].note and results["poselib"].flat == {}
    text = tables.accuracy(list(results.values()))
    assert "not installed: poselib: not here" in text and "calibrated" in text


# --- runs ------------------------------------------------------------------------------------


def test_results_are_kept_and_taken_again(monkeypatch, tmp_path):
    grid = [Part(Cell("two60", 1), ("opencv", "calibrated"))]
    first = {r.method: r for r in run_grid(grid, Options(3), tmp_path)}

    def forbidden(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr("benchmark.rig.run._run", forbidden)
    again = {r.method: r for r in run_grid(grid, Options(3), tmp_path)}
    for name, result in first.items():
        for key, value in result.flat.items():
            np.testing.assert_array_equal(value, again[name].flat[key])
    with pytest.raises(AssertionError, match="computed again"):
        list(run_grid(grid, Options(3, seed=1), tmp_path))


def test_grid_and_unknown_names():
    grid = make_grid(["wall"], (1, 10), METHODS, "full")
    gaussian = [p for p in grid if p.cell.errors == "gaussian"]
    assert len(gaussian) == 2 * 9 and len(grid) == 2 * 10
    assert all("ours" in p.methods for p in gaussian)
    assert rigs.choose(["held-out"])[0] == "wall" and rigs.choose(["wall", "wall"]) == ["wall"]
    for wrong in (
        lambda: rigs.choose(["walls"]),
        lambda: make_grid(["wall"], (1,), ("oures",), "full"),
        lambda: make_grid(["wall"], (1,), METHODS, "most"),
    ):
        with pytest.raises(UserError, match="expected"):
            wrong()


def test_targets_are_judged():
    """A perfect method meets what it can; one that always fails does not."""
    results = []
    for T in (1, 10):
        cases = make_cases(Cell("ring4", T), 2)
        for turn, name in ((0.0, "ours"), (15.0, "opencv")):
            flat = flatten(score(cases, answer(cases, turn)))
            results.append(Result(Cell("ring4", T), name, flat, ""))
    rows = {(row.label, row.column): row for row in check(results)}
    median = rows["rotation, median, 4-view ring", "T = 10"]
    assert median.met and median.figure.value < 1e-5
    assert rows["failures flagged", "T = 1"].met is None  # nothing failed, nothing stated
    bad = [r._replace(method="ours") for r in results if r.method == "opencv"]
    rows = {(row.label, row.column): row for row in check(bad)}
    assert rows["rotation, median, 4-view ring", "T = 10"].met is False
    text = targets_table("Targets", list(rows.values()))
    assert " deg* (<= 3.2)" in text and f"met: {sum(bool(r.met) for r in rows.values())} of" in text
    rival = [r._replace(method="ba-fivepoint-cauchy") for r in results if r.method == "ours"]
    pairs = sorted([*bad, *rival], key=lambda r: r.cell.num_frames)
    assert "in 2 of 2 cells" in tables.against_adjustment(pairs)
    assert tables.against_adjustment(bad) == ""
    assert len(tables.to_json(results)) == len(results)


def test_command_line(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    small = ["--families", "two60", "--cases", "4", "--methods", "ours", "opencv"]
    fast = ["--set", "posterior.num_samples=64"]
    assert main(["rig", *small, "--frames", "1", "10", *out, *fast]) == 0
    text = capsys.readouterr().out
    assert "failures, two views 60 deg" in text and "ours" in text and "<= 15" in text
    written = json.loads((tmp_path / "rig.json").read_text())
    assert {cell["method"] for cell in written["cells"]} == {"ours", "opencv", "calibrated"}
    assert (tmp_path / "rig.png").stat().st_size > 1000
    assert main(["rig", "--families", "rang", *out]) == 2
    assert "unknown rig family 'rang'" in capsys.readouterr().err


def test_ours_answers_as_users_are_answered():
    cases = make_cases(Cell("ring4", 3), 1, seed=2)
    model, options = make_model(("posterior.num_samples=64",))
    answer = solve(model, options, cases)
    keypoints, K = take((cases.keypoints, cases.K), 0)
    given = (keypoints.xy, K[0], keypoints.confidence, keypoints.covariance)
    found = estimate_rig(*given, K_std=0, num_samples=64, model=model)
    torch.testing.assert_close(answer.R[0], found.R, rtol=0, atol=1e-6)
    torch.testing.assert_close(answer.joints3d[0], found.joints3d, rtol=0, atol=1e-2)  # mm
    assert bool(answer.accepted[0]) == found.accepted


def test_speed():
    model, options = make_model(("posterior.num_samples=64",))
    size = Size(2, 1, 3, 20, num_samples=32)
    (timing,) = time_calls({"small": make_call(model, options, size)}, repeats=1)
    assert 0 < timing.fastest <= timing.median
    assert abs(exponent([1, 2, 4], [0.1, 0.2, 0.4]) - 1) < 1e-9


# --- the key of kept results -----------------------------------------------------------------


@pytest.mark.parametrize("module", ["rig/ours.py", "rig/run.py", "heads/unseen.py"])
def test_every_module_that_a_kept_result_depends_on_is_in_its_key(module):
    finder = modulefinder.ModuleFinder([str(cache.ROOT), str(cache.ROOT / "scripts")])
    finder.run_script(str(cache.ROOT / "scripts/benchmark" / module))
    imported = {Path(found.__file__) for found in finder.modules.values() if found.__file__}
    assert len(imported) > 40 and imported <= set(cache.sources())


def test_a_key_changes_with_settings_sources_and_files(monkeypatch, tmp_path):
    weights, source = tmp_path / "weights.pt", tmp_path / "source.py"
    monkeypatch.setattr(cache, "sources", lambda: [source])
    monkeypatch.setattr(cache, "_sources_digest", cache._sources_digest.__wrapped__)

    def key(settings="a", of_weights="b", of_source="c"):
        weights.write_text(of_weights)
        source.write_text(of_source)
        return cache.make_key(settings, [weights])

    assert key() == key()
    assert len({key(), key(settings="x"), key(of_weights="x"), key(of_source="x")}) == 4
