"""`benchmark.py truth`: its cases, what is counted of them, and its command."""

import json
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from benchmark.commands import main
from benchmark.rig.ours import make_model
from benchmark.truth import alike, cases, cells, command, figures, peers, tables, targets
from benchmark.truth.cells import Cell, Result
from benchmark.truth.scores import score
from detector_errors.clips import FOCAL, Clips, Detected

from ptri.data.transforms import normalise
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.geometry.rotations import so3_exp
from ptri.posterior.width import LENGTH
from ptri.skeleton import COCO17, H36M17
from ptri.structures import Cameras, Detector, Keypoints

KNOWN = Detector(frame_worth=0.5)


def fake_detected(skeleton=COCO17, num_clips=2, num_frames=20, px=3.0):
    """Clips of points about 4 m away, with noise of some px at the focal length `FOCAL`."""
    generator = torch.Generator().manual_seed(0)
    B, T, V, J = num_clips, num_frames, 4, len(skeleton.joints)
    own = 500 * torch.randn(B, T, J, 3, generator=generator) + torch.tensor([0.0, 0.0, 4000.0])
    K = torch.diag(torch.tensor([FOCAL, FOCAL, 1.0])).expand(B, V, 3, 3)
    cameras = Cameras(K, torch.eye(3).expand(B, V, 3, 3), torch.zeros(B, V, 3))
    xy = project(own, Cameras(*(part.unsqueeze(1) for part in cameras)))
    xy = xy + px * torch.randn(xy.shape, generator=generator)
    keypoints = Keypoints(xy, torch.eye(2).expand(*xy.shape, 2), torch.full(xy.shape[:-1], 1.1))
    inside = torch.ones(xy.shape[:-1], dtype=torch.bool)
    joints = torch.zeros(B, T, 17, 3)
    clips = Clips(joints, cameras, keypoints, inside, 10.0, skeleton.name)
    return Detected(clips, keypoints, own, inside)


def result(cell, clips, **scores):
    """Scores of N cases: good and accepted, unless given otherwise."""
    N = len(clips)
    usual = {"code": np.full(N, "ACCEPTED"), "view": np.full(N, -1.0), "angle": np.ones((N, 6))}
    for name in ("level", "away", "plain_away", "width"):
        usual[name] = np.full((N, 3), 0.4)
    usual["square"] = np.full((N, 3), figures.MEDIAN_SQUARE)
    for name in ("joints", "body"):
        usual[name] = np.full((N, 34), 0.7)
    usual["good"] = np.ones((N, 4))
    usual |= {"plain_angle": usual["angle"], "cauchy_angle": usual["angle"]}
    usual |= {"mpjpe": np.full((N, 1), 60.0), "calibrated": np.full((N, 1), 50.0)}
    return Result(cell, np.asarray(clips), {**usual, **scores})


# --- cases -----------------------------------------------------------------------------------


def test_rendered_cases_are_what_a_user_has():
    found = fake_detected()
    some = cases.rendered_cases(found, KNOWN, 10, 2)
    assert [case.clip for case in some] == [0, 0, 1, 1] and some[0].known == KNOWN
    assert torch.equal(some[1].xy, found.keypoints.xy[0, 10:].double())
    assert some[0].noise * FOCAL == pytest.approx(3.0, rel=0.05)
    assert some[0].good.all()
    off = found.keypoints.xy.clone()  # of one view most points, and of another some
    off[0, :, 1, :12] += 300
    off[0, :, 2, :5] += 300
    spoiled = found._replace(keypoints=found.keypoints._replace(xy=off))
    good = [case.good.tolist() for case in cases.rendered_cases(spoiled, KNOWN, 10, 1)]
    assert good == [[True, False, True, True], [True] * 4]
    given = some[0].given()
    assert torch.equal(given.keypoints.covariance[0, 0, 0], torch.eye(2).double())
    # Nothing known: the covariances are those of `ptri.estimate_rig` without any.
    case = cases.rendered_cases(found, None, 10, 1)[0]
    assert case.covariance is None and case.known == Detector()
    assert case.given().keypoints.covariance[0, 0, 0, 0, 0] > 4
    unstated = found.keypoints._replace(covariance=found.keypoints.covariance * torch.nan)
    assert cases.rendered_cases(found._replace(keypoints=unstated), KNOWN, 1, 1)[0][4] is None


@pytest.mark.parametrize("skeleton", [COCO17, H36M17])
def test_thinned_cases(skeleton):
    found = fake_detected(skeleton)
    for case in cases.rendered_cases(found, KNOWN, 20, 1, "seldom"):
        share = torch.isfinite(case.xy).all(-1).double().mean((0, 2)).sort().values
        assert 0.05 <= share[0] <= 0.4 and (share[1:] == 1).all()
    case = cases.rendered_cases(found, KNOWN, 20, 1, "upper")[0]
    seen = torch.isfinite(case.xy).all(-1)
    assert (seen.sum(-1) == 10).all()
    names = {name for name, there in zip(skeleton.joints, seen[0, 0]) if there}
    assert not {name for name in names if name.endswith(("knee", "foot", "ankle", "nose"))}


def test_a_folder_without_rigs_is_named(tmp_path):
    with pytest.raises(UserError, match="no rigs of scripts/render_people"):
        cases.read_root(tmp_path)
    (tmp_path / "extra").mkdir()
    settings = {"cameras": 8, "rig": "dome", "frames": 20}
    (tmp_path / cases.SETTINGS).write_text(json.dumps(settings))
    assert cases.read_root(tmp_path) == cases.Root(tmp_path, "dome 8", 20)


# --- peers -----------------------------------------------------------------------------------


def test_a_peer_answers_in_the_order_of_the_crops(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 256, 256, 3), np.uint8)
    images = torch.stack([normalise(picture) for picture in pictures])
    writer = peers.CropWriter(tmp_path, "corner_1")
    assert writer(images[:2]).xy.isnan().all() and writer(images[2:]).xy.shape == (1, 17, 2)
    peers.write_names(tmp_path, writer.names)
    assert np.array_equal(cv2.imread(str(tmp_path / "corner_1_00002.png"))[..., ::-1], pictures[2])
    content = json.loads((tmp_path / "crops.json").read_text())
    joints = COCO17.joints[::-1]
    said = np.random.default_rng(1).random((3, 17, 3))
    persons = {name: xy.tolist() for name, xy in zip(content["persons"], said)}
    persons["corner_1_00001"] = None
    answer = {**content, "method": "m", "joints": joints, "persons": persons}
    path = tmp_path / "mediapipe.json"
    path.write_text(json.dumps(answer))
    peer = peers.Peer(path, "corner_1")
    first, last = peer(images[:2]), peer(images[2:])
    assert peer.name == "mediapipe" and last.covariance.isnan().all()
    np.testing.assert_allclose(first.xy[0], said[0, ::-1, :2], rtol=1e-6)
    np.testing.assert_allclose(last.confidence[0], said[2, ::-1, 2], rtol=1e-6)
    assert first.xy[1].isnan().all() and (first.confidence[1] == 0).all()
    with pytest.raises(UserError, match="lacks corner_1_00003"):
        peer(images[:1])
    path.write_text(json.dumps({**answer, "crop_scale": 1.0}))
    with pytest.raises(UserError, match="made from other crops"):
        peers.Peer(path, "corner_1")


# --- figures ---------------------------------------------------------------------------------


def test_intervals_are_over_clips():
    rng = np.random.default_rng(0)
    values, clips = rng.random(40), np.arange(40)
    once, ten = figures.share(values, clips), figures.share(values.repeat(10), clips.repeat(10))
    assert once == pytest.approx(ten) and once.value == pytest.approx(values.mean())
    apart = figures.share(values.repeat(10), np.arange(400))  # as if frames were independent
    assert apart.high - apart.low < 0.5 * (once.high - once.low)
    middle = figures.quantile(values, clips, 0.5)
    assert middle.low < middle.value == np.sort(values)[19] < middle.high
    assert figures.quantile(np.array([1, np.inf, np.inf]), np.arange(3), 0.5).high == np.inf
    ratio = figures.share(2 * values, clips, values)
    assert ratio == pytest.approx((2, 2, 2))
    assert np.isnan(figures.share(values * np.nan, clips).value)
    assert np.isnan(figures.share(values, clips, values > 2).value)  # of nothing
    assert np.isnan(figures.share(values, np.zeros(40)).low)  # one clip


def test_too_small_by():
    square = np.random.default_rng(0).chisquare(3, 4000)
    factor = figures.too_small(2**2 * square, np.arange(4000))
    assert factor.value == pytest.approx(2, rel=0.05) and factor.low < 2 < factor.high


def test_what_is_counted():
    cell = Cell("movenet", "corner", "corner_1", 10)
    good = figures.summarise([result(cell, [0, 1, 2, 3])])
    for name, value in (
        *(("level50", 1), ("level90", 1), ("too_small", 1), ("joints50", 0), ("body90", 1)),
        *(("failed_of_accepted", 0), ("rejected_of_good", 0), ("blamed", 0), ("worse", 0)),
        *(("accepted", 1), ("over_calibrated", 1.2), ("angle_median", 1)),
    ):
        assert good[name].value == pytest.approx(value), name
    # One of each kind of failure.
    far, high = np.ones((4, 6)), np.full((4, 3), 0.4)
    far[0, 2], high[1, 0] = 11, 0.995
    codes = np.array(["ACCEPTED", "MISREAD", "UNCERTAIN", "ACCEPTED"])
    away = np.array([[0.4] * 3, [3.0, 0.4, 0.4], [3.0, 0.4, 0.4], [2.0, 0.4, 0.4]])
    named = {"code": codes, "view": np.array([-1, 2, 1, -1])}
    bad = figures.summarise([result(cell, [0, 1, 2, 3], angle=far, level=high, away=away, **named)])
    assert bad["failed_of_accepted"].value == 1 / 2 and bad["rejected_of_good"].value == 2 / 3
    assert bad["blamed"].value == 1 / 4  # too little evidence is no blame, nor ...
    poor = np.array([[True, True, False, True]] * 4)  # ... is what is right
    poor = figures.summarise([result(cell, [0, 1, 2, 3], good=poor, **named)])
    assert poor["blamed"].value == 0
    assert bad["worse"].value == 1 / 4  # only where the region denies it too
    assert bad["better"].value == 0
    assert figures.summarise([result(cell, [0], plain_away=away[1:2])])["better"].value == 1
    quartiles = figures.by_difficulty([result(cell, [0, 1], width=np.arange(6).reshape(2, 3))])
    assert [part["width"].value for part in quartiles] == [0.5, 2.5, 4, 5]


def test_what_is_held_out_stands_apart_and_is_marked():
    families = ("corner", "wall", "dome", "dome 8")
    parts = [result(Cell("mediapipe", f, f + "_1", 1), [n]) for n, f in enumerate(families)]
    rows = tables.make_rows(parts)
    assert [row.family for row in rows] == [*families, targets.POOLED]
    assert [r.cell.family for r in rows[-1].results] == ["corner", "dome"]
    text = tables.text_of(rows, tables.summaries(rows))
    assert "mediapipe#, wall#" in text and "mediapipe#, corner " in text
    judged = targets.judge("movenet", "wall", 1, tables.summaries(rows)[1])
    assert not next(row for row in judged if "R in 50" in row.label).met  # 100 % is too much
    assert next(row for row in judged if "worse" in row.label).met


# --- a case, and the command -----------------------------------------------------------------


def test_a_solved_case_beside_its_truth():
    model, options = make_model()
    case = cases.generated_cases("student3", "corner", 2, 1)[0]
    scores = score(model, case, options, 0)
    shapes = {"angle": 6, "cauchy_angle": 6, "level": 3, "joints": 2 * 17, "body": 2 * 17}
    assert {name: scores[name].shape for name in shapes} == {n: (s,) for n, s in shapes.items()}
    assert np.isnan(scores["body"].reshape(2, 17)[:, H36M17.root]).all()
    assert scores["away"].max() < 15 and scores["plain_away"].max() < 15
    # Were the truth elsewhere, no region would hold it.
    turn = so3_exp(torch.tensor([0.0, 1.0, 0.0])).double()
    turned = case.cameras.R.clone()
    turned[1:] = turn @ turned[1:]
    wrong = case._replace(cameras=case.cameras._replace(R=turned))
    other = score(model, wrong, options, 0)
    assert (other["level"] > 0.999).all() and (other["away"] > 30).all()
    least = {"angle", "code", "view", "good"}
    assert set(score(model, case, options, 0, verdict_only=True)) == least


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    arguments = ["truth", "--detectors", "gaussian", "--families", "corner", "wall", "--frames"]
    arguments += ["1", "--cases", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "gaussian, wall#" in text and (tmp_path / "truth.png").is_file()
    content = json.loads((tmp_path / "truth.json").read_text())
    assert [row["family"] for row in content["rows"]] == ["corner", "wall", targets.POOLED]
    monkeypatch.setattr(command, "solve_cell", None)  # all is taken from the disk
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert again == text
    assert main([*arguments, "--against", str(tmp_path / "truth.json")]) == 0
    assert " (<= 10) was 0" in capsys.readouterr().out
    kept = cells.read_result(
        Cell("gaussian", "wall", "", 1), tmp_path / "truth/gaussian-wall-T1.npz", None
    )
    assert len(kept.clips) == 2
    with pytest.raises(TypeError):  # other settings: solved anew
        main([*arguments, "--set", "posterior.num_modes=2"])


def test_bad_arguments_get_a_line(tmp_path, capsys):
    (tmp_path / "rig.json").write_text("[]")
    for extra, message in (
        (["--detectors", "movenet", "--families", "wall"], "nothing to solve: no rendered rigs"),
        (["--families", "circle"], "unknown rig family 'circle'"),
        (["--frames", "0"], "--frames 0"),
        (["--against", str(tmp_path / "rig.json")], "rig.json: no truth.json"),
        ([str(tmp_path)], "no rigs of scripts/render_people.py"),
    ):
        assert main(["truth", "--out", str(tmp_path), *extra]) == 2
        assert message in capsys.readouterr().err


def test_how_alike_errors_are():
    """Errors drawn by the law have its correlation; independent ones have none."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = 250 * normal(4, 1, 12, 3) + (30 * normal(4, 40, 12, 3)).cumsum(1)  # mm
    distance = truth - truth.mean(2, keepdim=True)
    distance = (distance[:, :, None] - distance[:, None]).norm(dim=-1).mean(-1)
    eye = 1e-6 * torch.eye(40).double()
    root = torch.linalg.cholesky((-distance / LENGTH).exp() + eye)
    white = normal(4, 40, 20, 12, 2)
    for error, law in ((torch.einsum("bst,btvjc->bsvjc", root, white), True), (white, False)):
        covariance = 4 * torch.eye(2).double().expand(*error.shape, 2)
        keypoints = Keypoints(error, covariance, torch.ones(error.shape[:-1]))
        found = SimpleNamespace(keypoints=keypoints, truth=truth, true_xy=lambda: 0 * white)
        postures, joints = alike.alike([found])
        for value, low, high in zip(postures[2:6], alike.POSTURES[2:6], alike.POSTURES[3:7]):
            expected = math.exp(-0.5 * (low + high) / LENGTH) if law else 0.0
            assert value == pytest.approx(expected, abs=0.1)
        assert max(map(abs, joints)) < 0.1  # nothing in common between joints
