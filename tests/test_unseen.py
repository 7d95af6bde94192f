"""Heads on unseen rigs: scenes, scores, intervals, targets, and both commands in miniature."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark.commands import main
from benchmark.figures import bootstrap
from benchmark.heads import tables, unseen
from benchmark.heads.unseen import TRAINING, Head, RigSet, Solved
from benchmark.heads.weights import load_head, named_heads

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.structures import UNKNOWN_DETECTOR, Prediction
from ptri.training.solved_scenes import Group
from ptri.verdict.readings import Sides

ROOT = Path(__file__).resolve().parents[1]
CONFIG = config.load(None, ["run.name=test"])
HEADS = {"fusion", "algebraic", "volumetric", "fixed_views_mlp"}


class Oracle:
    """Answers with the truth, moved by some millimetres to one side, and says so."""

    def __init__(self, scene, off, uses_cameras=True):
        self.truth, self.t, self.off = scene.joints3d, scene.cameras.t, off
        self.fusion = types.SimpleNamespace(uses_cameras=uses_cameras, num_views=4)

    detector = UNKNOWN_DETECTOR

    def lift(self, keypoints, K):
        return types.SimpleNamespace(
            relative=torch.zeros(*K.shape[:-2], 17, 3), sigma=torch.full((*K.shape[:-2], 17), 1e9)
        )

    def fuse(self, keypoints, K, posterior, features):
        joints = self.truth[:, :: unseen.SCORED_EVERY if self.truth.shape[1] > 1 else 1].clone()
        others = [joint for joint in range(17) if joint != unseen.ROOT]
        joints[..., others, 0] += self.off * (posterior.t[0].norm() / self.t.norm())
        covariance = torch.eye(3).expand(*joints.shape, 3) * 100.0**2
        return Prediction(joints, covariance)


def solved(rig_set, count=5):
    scene = unseen.make_scenes(rig_set, CONFIG, 0, 0, count)
    # What stands for the solved cameras is twice as far away as the true ones.
    R, t = (value.expand(2, *value.shape) for value in (scene.cameras.R, 2 * scene.cameras.t))
    order = torch.arange(17).expand(*scene.K.shape[:3], 17)
    return Solved(Group(scene, R, t), Sides(order, torch.ones_like(order, dtype=torch.bool)))


# --- scenes and scores -----------------------------------------------------------------------


def test_scenes_do_not_depend_on_the_batch_and_views_are_nested():
    few, more = RigSet("wall", 1, 2, 8), RigSet("wall", 1, 4, 8)
    a, b = (unseen.make_scenes(cell, CONFIG, 3, 0, 4) for cell in (few, more))
    assert a.K.shape[2] == 2 and b.K.shape[2] == 4
    assert torch.equal(a.cameras.R, b.cameras.R[:, :2])
    assert torch.equal(a.keypoints.xy.nan_to_num(-1), b.keypoints.xy[:, :, :2].nan_to_num(-1))
    part = unseen.make_scenes(more, CONFIG, 3, 2, 2)
    assert torch.equal(part.joints3d, b.joints3d[2:])
    other = unseen.make_scenes(more, CONFIG, 4, 0, 4)
    assert not torch.equal(other.joints3d, b.joints3d)


def test_no_family_called_unseen_is_trained_on():
    unseen.check_families(CONFIG)
    assert TRAINING in CONFIG.generated.families
    bad = config.replace(CONFIG, generated__families=["wall"], generated__held_out_families=[])
    with pytest.raises(UserError, match=r"generated\.families: wall"):
        unseen.check_families(bad)


@pytest.mark.parametrize("frames", [1, 7])
def test_scores_are_the_errors_of_each_rig(frames):
    cell = RigSet("wall", frames)
    rigs = solved(cell)
    offs = {"near": 10.0, "far": 40.0}
    heads = [Head(name, Oracle(rigs.group.scene, off), "") for name, off in offs.items()]
    found = dict(unseen.score(heads, cell, rigs))
    for name, off in offs.items():
        # 16 of 17 joints are off: unknown cameras by twice as much.
        assert np.allclose(found[name]["calibrated"], off * 16 / 17, atol=0.1)
        assert np.allclose(found[name]["mpjpe"], 2 * off * 16 / 17, atol=0.1)
        assert found[name]["mpjpe"].shape == (5,)
    assert (found["near"]["scaled"] <= found["near"]["mpjpe"] + 1e-3).mean() > 0.5
    assert (found["near"]["coverage50"] == 1).all()  # 100 mm a coordinate are stated
    assert found["triangulation"]["answered"].mean() > 15


def test_a_head_without_cameras_answers_its_own_views_only():
    for cell, answers in ((RigSet("wall"), True), (RigSet("wall", 1, 4, 8), False)):
        rigs = solved(cell, 2)
        blind = Head("blind", Oracle(rigs.group.scene, 10.0, uses_cameras=False), "")
        found = dict(unseen.score([blind], cell, rigs))
        assert ("blind" in found) == answers
    assert "calibrated" not in found.get("blind", {})


# --- figures and targets ---------------------------------------------------------------------


def test_intervals_hold_the_mean_and_narrow_with_rigs():
    rng = np.random.default_rng(0)
    inside = widths = 0.0
    for seed in range(60):
        few = bootstrap([(rng.exponential(50.0, 40),)], seed)
        inside += few.low <= 50.0 <= few.high
        many = bootstrap([(rng.exponential(50.0, 640),)], seed)
        widths += (few.high - few.low) / (many.high - many.low)
    assert 0.8 < inside / 60 < 1.0  # nominal 0.95, less for 40 skewed values
    assert 3.2 < widths / 60 < 4.8  # 4 by the square root of 16


def test_ratios_are_paired_and_families_weigh_alike():
    rng = np.random.default_rng(1)
    size = rng.uniform(10.0, 100.0, 200)
    paired = bootstrap([(1.2 * size, size)])
    assert abs(paired.value - 1.2) < 1e-9 and paired.high - paired.low < 1e-9
    shuffled = bootstrap([(1.2 * size, rng.permutation(size))])
    assert shuffled.high - shuffled.low > 0.1  # the control
    assert bootstrap([(np.full(4, 10.0),), (np.full(400, 20.0),)]).value == 15.0
    holes = bootstrap([(np.array([1.0, np.nan, 3.0]), np.array([1.0, 1.0, np.nan]))])
    assert holes.value == 1.0
    assert np.isnan(bootstrap([(np.array([np.nan]),)]).value)


def found_with(**scores):
    """Two heads on every cell, with given means of ours."""
    rng = np.random.default_rng(2)
    own = {"mpjpe": 50.0, "calibrated": 49.0, "answered": 45.0, "coverage50": 0.5}
    own |= {"coverage90": 0.9, **scores}
    cells = unseen.make_rig_sets()
    spread = rng.uniform(0.9, 1.1, 50)
    spread /= spread.mean()
    ours = {
        cell: {
            name: value * spread * (1.0 if "coverage" in name else 1 + 2 / cell.num_views)
            for name, value in own.items()
        }
        for cell in cells
    }
    rival = {
        cell: {"mpjpe": ours[cell]["mpjpe"] * (1.4 if cell.family == TRAINING else 4.0)}
        for cell in cells
        if cell.of_views == 4
    }
    plain = {cell: {"answered": 80.0 * spread} for cell in cells}
    return {"ours": ours, "fixed_views_mlp": rival, "triangulation": plain}


def test_targets_are_judged_by_their_figures():
    rows = tables.targets(found_with(), "ours")
    (missed,) = [row for row in rows if not row.met]  # 50 / 49 > 1.01
    assert "MPJPE over calibrated" in missed.label and missed.column == "T = 27"
    for change, label in (
        ({"calibrated": 40.0}, "MPJPE over calibrated"),
        ({"answered": 90.0}, "over triangulation"),
        ({"coverage50": 0.6}, "50 % joint regions"),
        ({"coverage90": 0.85}, "90 % joint regions"),
    ):
        rows = tables.targets(found_with(**change), "ours")
        assert all(row.met is False for row in rows if label in row.label), label
    found = found_with()
    for cell in tables.view_sets(8, 8):
        found["ours"][cell]["mpjpe"] += 60.0
    rows = tables.targets(found, "ours")
    assert [row.met for row in rows if "views over" in row.label] == [True, True, False]
    del found["fixed_views_mlp"]
    rows = tables.targets(found, "ours")
    assert [row.met for row in rows if "fixed_views_mlp" in row.label] == [None, None]
    text = tables.report(tables.figures(found), rows, "ours", "a note")
    assert "not measured (>= 3)" in text and "* (< 1)" in text and text.endswith("a note")


# --- weights and commands --------------------------------------------------------------------


def test_heads_load_with_the_sizes_they_were_trained_with(tmp_path):
    settings = config.load(None, ["run.name=t", "model.head=algebraic"])
    model = PoseModel(settings, with_images=False)
    state = {f"fusion.{name}": value for name, value in model.fusion.state_dict().items()}
    meta = {"model": config.to_dict(settings)["model"]}
    checkpoint.save_weights(tmp_path / "algebraic.pt", state, meta)
    (head,) = named_heads([], tmp_path, CONFIG)
    assert head.name == "algebraic" and head.model.fusion.said.in_features == 20
    assert load_head("ours", ROOT / "checkpoints" / "ptri_3d.pt", CONFIG).model.fusion.uses_cameras
    with pytest.raises(UserError, match="name=path"):
        named_heads(["algebraic"], tmp_path, CONFIG)
    meta["model"]["head"] = "volumetric"
    checkpoint.save_weights(tmp_path / "algebraic.pt", state, meta)
    with pytest.raises(UserError, match="another architecture"):
        named_heads([], tmp_path, CONFIG)


def test_ablation_configurations_share_their_budget():
    plans = [config.load(path) for path in sorted((ROOT / "configs/ablations").glob("*.yaml"))]
    assert {plan.model.head for plan in plans} == HEADS
    for name in ("epochs", "steps_per_epoch", "batch_size", "lr"):
        assert len({getattr(plan.train, name) for plan in plans}) == 1
    assert all(plan.train.new == "head" and plan.train.lifter_epochs == 0 for plan in plans)
    assert len({plan.generated.pool for plan in plans if plan.generated.pool}) == 1
    fixed = next(plan for plan in plans if plan.model.head == "fixed_views_mlp")
    assert fixed.generated.families == [TRAINING]  # the published code learns one rig
    views = (fixed.generated.min_views, fixed.generated.max_views)
    assert views == (fixed.model.sizes["fixed_views"],) * 2


SOLVED = ["posterior.num_samples=64", "posterior.num_modes=1"]


@pytest.mark.slow
def test_unseen_rigs_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("benchmark.heads.unseen.SCORED_EVERY", 13)
    words = ["unseen-rigs", "--quick", "--rigs", "2", "--out", str(tmp_path), "--set", *SOLVED]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "Targets, of ours" in first and "T = 27" in first and "triangulation" in first
    tree = json.loads((tmp_path / "unseen.json").read_text())
    assert tree["settings"]["heads"]["ours"]["uses_cameras"]
    ratio = tree["targets"][0]["figure"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]

    def never(*_, **__):
        raise AssertionError("solved again")

    monkeypatch.setattr("ptri.rig.estimate.solve", never)
    assert main(words) == 0
    assert capsys.readouterr().out == first  # equal figures from the rigs that were kept
    assert main(["unseen-rigs", "--ours", "none.pt"]) == 2


@pytest.mark.slow
def test_ablations_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for name, value in (("solved_scenes.CHUNK", 8), ("validation3d.NUM_SCENES", 8)):
        monkeypatch.setattr(f"ptri.training.{name}", value)
    monkeypatch.setattr("benchmark.heads.unseen.SCORED_EVERY", 13)
    sizes = ["model.sizes.volume_size=8", "model.sizes.fixed_width=32"]
    small = [*SOLVED, *sizes, "train.max_frames=2"]
    out = str(tmp_path / "out")
    words = ["ablations", "--steps", "4", "--scenes", "16", "--rigs", "2", "--clips", "1"]
    words += ["--out", out, "--weights", str(tmp_path / "weights"), "--set", *small]
    assert main(words) == 0
    first = capsys.readouterr().out
    tree = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert set(tree["settings"]["training_seconds"]) == HEADS
    assert all(not isinstance(row["met"], str) for row in tree["targets"])
    assert (tmp_path / "weights" / "volumetric.pt").stat().st_size < 300_000

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("ptri.training.engine.fit", never)
    assert main(words) == 0  # all heads are there
    table = first.split("minutes of training")[0]
    assert capsys.readouterr().out.split("minutes of training")[0] == table
    assert main([*words, "train.lr=0.1"]) == 2
    assert "train.lr" in capsys.readouterr().err
    assert main(["ablations", "--heads", "none"]) == 2
    assert "none.yaml" in capsys.readouterr().err
