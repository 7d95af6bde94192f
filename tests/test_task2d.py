"""The 2D task on painted joints: one colour per joint, so a small network can learn them."""

import json
import math

import export_weights
import numpy as np
import pytest
import torch
from h36m_fixture import make_tiny_h36m
from toy_task import read_lines

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.evaluation.metrics import calibration_gap, joint_metrics, mirrored, ranking
from ptri.models import losses
from ptri.skeleton import H36M17
from ptri.training import engine, task2d
from ptri.training.task2d import HeatmapTask, detection_losses, image_size


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    make_tiny_h36m(folder, num_frames=2, size=96)
    return folder


def settings(root, out, *overrides):
    return config.load(None, [
        "run.name=two", f"run.out={out}", "run.device=cpu", "run.threads=1", f"data.root={root}",
        "data.train_subjects=[1]", "data.test_subjects=[9]", "data.image_size=64",
        "data.workers=0", "data.crop_scale=1.1", "train.batch_size=8", "train.epochs=1",
        "train.warmup_steps=5", "train.ema_decay=0.9", "train.lr=0.005", "evaluate.pictures=1",
        "augment.color=0", "augment.occluder=0", "augment.noise=0",
        "augment.rotation_deg=0", "augment.scale=0", "augment.shift=0",
        *overrides,
    ])  # fmt: skip


def test_overfits_painted_joints(root, tmp_path):
    """Training lowers the error on the very images it sees, through the engine."""
    made = settings(root, tmp_path, "data.test_subjects=[1]", "train.steps_per_epoch=60")
    task = HeatmapTask(made)
    torch.manual_seed(0)
    before = task.validate(task.build_model().eval())
    engine.fit(HeatmapTask(made))
    model = task.build_model().eval()
    checkpoint.initialise(model, tmp_path / "two" / "best.pt")
    after = task.validate(model)
    # px of a 64 px image; measured 18 before, 2 after
    assert before["x2d/l2"] > 10 and after["x2d/l2"] < 4, (before["x2d/l2"], after["x2d/l2"])
    assert after["loss/hm"] < 0.5 * before["loss/hm"]
    expected = {
        "loss", "loss/hm", "loss/x2d", "x2d/l1", "x2d/l2", "x2d/median", "x2d/pck", "x2d/swapped",
        "coverage_50", "coverage_90", "confidence/gap", "confidence/auc",
    }  # fmt: skip
    assert expected <= set(after) and all(np.isfinite(list(after.values())))
    pictures = task.pictures(model)
    assert sorted(pictures) == ["heatmaps/0", "skeleton/0"]
    assert all(p.dtype == np.uint8 and p.ndim == 3 and p.std() > 0 for p in pictures.values())


def test_batches_are_single_views(root, tmp_path):
    made = settings(root, tmp_path, "train.steps_per_epoch=3")
    task = HeatmapTask(made)
    assert task.steps_per_epoch() == 3
    assert HeatmapTask(settings(root, tmp_path)).steps_per_epoch() == 2  # one pass by default
    batches = list(task.batches(0, 2))
    assert batches[0].images.shape == (8, 1, 3, 64, 64)
    # a pass of two batches has every view of every frame once
    seen = torch.cat([batch.joints2d[:, 0, 0] for batch in batches])
    assert len(seen.round(decimals=3).unique(dim=0)) == 16
    halves = [next(HeatmapTask(made).batches(0, 1, rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.images for half in halves]), batches[0].images)


def test_losses_are_per_sample_and_weighted(root, tmp_path):
    task = HeatmapTask(settings(root, tmp_path))
    torch.manual_seed(0)
    model = task.build_model().train()
    batch = next(task.batches(0, 1))
    values = task.training_step(model, batch, 0)
    expected = sum(weight * values[name] for name, weight in task2d.WEIGHTS.items())
    assert values["loss"].shape == (8,)
    torch.testing.assert_close(values["loss"], expected)
    # Two views of four samples instead of eight: the mean over views.
    with torch.no_grad():
        detection = model.eval()(batch.images.flatten(0, 1))
        eight, _ = detection_losses(detection, batch)
        parts = {name: getattr(batch, name) for name in ("images", "joints2d", "visible")}
        pairs = batch._replace(**{k: v.reshape(4, 2, *v.shape[2:]) for k, v in parts.items()})
        four, _ = detection_losses(detection, pairs)
    torch.testing.assert_close(four["loss"], eight["loss"].view(4, 2).mean(1))


def test_every_parameter_is_trained_and_norms_do_not_decay(root, tmp_path):
    task = HeatmapTask(settings(root, tmp_path))
    model = task.build_model()
    groups = task.parameter_groups(model)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, model.parameters()))
    assert all(p.ndim < 2 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0


def test_starts_from_a_checkpoint(root, tmp_path):
    def build(context, name=None):
        made = settings(root, tmp_path, f"model.sizes.context={context}")
        path = name and str(tmp_path / name)
        return HeatmapTask(config.replace(made, init__checkpoint_2d=path)).build_model().eval()

    torch.manual_seed(1)
    model = build(False)
    checkpoint.save_weights(tmp_path / "w.pt", model.state_dict(), {})
    again = build(False, "w.pt")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-4)  # fp16
    more = build(True, "w.pt")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(more(images).logits, again(images).logits)
    checkpoint.save_weights(tmp_path / "more.pt", more.state_dict(), {})
    with pytest.raises(UserError, match=r"more\.pt.*Unexpected"):
        build(False, "more.pt")


def test_export_is_what_was_evaluated(root, tmp_path, capsys):
    made = settings(root, tmp_path, "train.steps_per_epoch=2", "evaluate.pictures=0")
    engine.fit(HeatmapTask(made))
    source, target = tmp_path / "two" / "best.pt", tmp_path / "w.pt"
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text(config.to_yaml(made))
    assert export_weights.main([str(source), str(target), "--evaluate", str(chosen)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    _, meta = checkpoint.load_weights(source)
    assert abs(metrics["x2d/l2"] - meta["best"]) < 0.02 * meta["best"]  # fp16
    assert target.stat().st_size < 6e6
    _, kept = checkpoint.load_weights(target)
    assert kept["step"] == 2 and kept["model"]["backbone"] == "mobileone_s0"
    assert str(tmp_path) not in str(kept) and str(root) not in str(kept)
    assert export_weights.main([str(source), str(target)]) == 2
    assert "w.pt: exists" in capsys.readouterr().err
    assert export_weights.main([str(source)]) == 2


def test_joint_metrics_on_known_errors():
    generator = torch.Generator().manual_seed(0)
    error = 2.0 * torch.randn(20000, 2, generator=generator)
    found = torch.rand(20000, generator=generator) < 0.8
    paired = torch.arange(20000) % 2 == 0
    known = torch.rand(20000, generator=generator) < 0.5
    found &= known  # of the others nobody can tell
    metrics = joint_metrics(
        error=error.norm(dim=-1), absolute=error.abs().mean(-1),
        square=(error / 2).square().sum(-1), confidence=torch.full((20000,), 0.8), found=found,
        visible=torch.ones(20000, dtype=torch.bool), paired=paired, known=known,
        swapped=torch.arange(20000) % 8 == 0,
    )  # fmt: skip
    assert abs(metrics["coverage_90"] - 0.9) < 0.01 and abs(metrics["coverage_50"] - 0.5) < 0.01
    assert abs(metrics["x2d/median"] - 2 * 1.177) < 0.05  # median of a Rayleigh distribution
    assert metrics["confidence/gap"] < 0.03
    assert metrics["x2d/swapped"] == 0.25
    assert calibration_gap(torch.full((20000,), 0.3), found | ~known) > 0.45
    with pytest.raises(UserError, match="no joint"):
        joint_metrics(*[torch.ones(3)] * 4, *[torch.zeros(3, dtype=torch.bool)] * 5)


def test_ranking_of_confidences():
    happened = torch.tensor([True, False, True, False])
    assert ranking(torch.tensor([0.9, 0.2, 0.8, 0.3]), happened) == 1.0
    assert ranking(torch.tensor([0.1, 0.8, 0.2, 0.7]), happened) == 0.0
    assert ranking(torch.tensor([0.9, 0.3, 0.2, 0.1]), happened) == 0.75
    assert ranking(torch.rand(4), torch.ones(4, dtype=torch.bool)) == 0.5
    assert ranking(torch.full((4,), 0.7), happened) == 0.5  # equal confidences say nothing


def test_swapped_sides_are_seen():
    generator = torch.Generator().manual_seed(0)
    truth = 100 * torch.rand(1, 17, 2, generator=generator)
    left, right = H36M17.joints.index("left_knee"), H36M17.joints.index("right_knee")
    truth[0, left], truth[0, right] = torch.tensor([10.0, 10.0]), torch.tensor([40.0, 10.0])
    elbow, hidden = (H36M17.joints.index(f"{side}_elbow") for side in ("left", "right"))
    truth[0, hidden] = torch.nan
    xy, visible = truth.clone(), torch.ones(1, 17, dtype=torch.bool)
    marks = mirrored(xy, truth, visible, 10.0)
    assert not marks["swapped"].any()
    assert marks["paired"][0, [left, H36M17.root]].tolist() == [True, False]  # its own mirror joint
    assert not marks["paired"][0, [elbow, hidden]].any()  # one of the two is not known
    xy[0, left] = truth[0, right] + 3.0
    assert mirrored(xy, truth, visible, 10.0)["swapped"].nonzero().tolist() == [[0, left]]
    assert not mirrored(xy, truth, visible, 31.0)["paired"][0, left]  # too near to tell


def test_image_sizes_are_spread_over_the_epochs(root, tmp_path):
    made = settings(root, tmp_path, "train.epochs=5", "train.image_sizes=[32,32,64]")
    assert [image_size(made, epoch) for epoch in range(6)] == [32, 32, 32, 32, 64, 64]
    task = HeatmapTask(made)
    for task.epoch, size in ((0, 32), (4, 64), (0, 32)):
        batch = next(task.batches(0, 1))
        assert batch.images.shape[-1] == size
        inside = batch.joints2d[batch.visible]
        assert float(inside.max()) <= size - 0.5 and float(inside.max()) > 0.8 * size
    for sizes in ("[64,32]", "[40,64]"):
        with pytest.raises(UserError, match=r"train.image_sizes.*data.image_size, 64"):
            image_size(settings(root, tmp_path, f"train.image_sizes={sizes}"), 0)


def test_validation_follows_the_image_sizes(root, tmp_path):
    """Errors are in px of the last size, whatever the epoch's; the run ends with that size."""
    made = settings(root, tmp_path, "train.epochs=2", "train.image_sizes=[32,64]",
                    "train.steps_per_epoch=2")  # fmt: skip
    task = HeatmapTask(made)
    torch.manual_seed(0)
    model = task.build_model().eval()
    last = task.validate(model)
    task.epoch = 0
    first = task.validate(model)
    assert task.pictures(model)["skeleton/0"].dtype == np.uint8
    # Measured 0.67; in px of their own images 0.34.
    assert 0.5 < first["x2d/l2"] / last["x2d/l2"] < 1.5, (first["x2d/l2"], last["x2d/l2"])
    task.epoch = 1
    assert task.validate(model) == last
    engine.fit(HeatmapTask(made))
    assert [line["step"] for line in read_lines(tmp_path, "val")] == [2, 4]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_divergence(logits, xy, sigma):
    """KL of one heatmap, with the target written out."""
    height, width = logits.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = (-((x - xy[0]) ** 2 + (y - xy[1]) ** 2) / (2 * sigma**2)).exp()
    target = target / target.sum()
    log_p = logits.flatten().log_softmax(0).view_as(logits)
    return (target * (target.clamp_min(1e-30).log() - log_p)).sum()


def test_divergence_equals_naive():
    logits, xy = draw(2, 3, 12, 10), 3 + 2 * draw(2, 3, 2)
    value = losses.heatmap_divergence(logits, xy, torch.ones(2, 3, dtype=torch.bool))
    expected = [
        sum(naive_divergence(logits[n, j], xy[n, j], 1.5) for j in range(3)) / 3 for n in range(2)
    ]
    torch.testing.assert_close(value, torch.stack(expected), rtol=1e-4, atol=1e-4)


SEEN = torch.ones(1, 1, dtype=torch.bool)


def test_divergence_is_zero_only_at_the_target():
    x = torch.arange(16.0)
    target = -((x[None] - 6.3) ** 2 + (x[:, None] - 8.8) ** 2) / (2 * 1.5**2)
    logits = target[None, None].clone().requires_grad_()
    xy = torch.tensor([[[6.3, 8.8]]])
    value = losses.heatmap_divergence(logits, xy, SEEN)
    value.sum().backward()
    assert abs(float(value.detach())) < 1e-5 and float(logits.grad.abs().max()) < 1e-6
    assert float(losses.heatmap_divergence(logits, xy + 1.0, SEEN).detach()) > 0.3


def test_extreme_logits_give_finite_loss_and_gradient():
    logits = (1e4 * draw(1, 2, 8, 8)).requires_grad_()
    xy = torch.tensor([[[3.0, 3.0], [-500.0, 900.0]]])
    value = losses.heatmap_divergence(logits, xy, torch.ones(1, 2, dtype=torch.bool))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


CONFIDENT = torch.eye(2).expand(2, 3, 2, 2)


@pytest.mark.parametrize("loss", [
    lambda e, t, m: losses.heatmap_divergence(e[..., None] * draw(2, 3, 2, 5), t, m),
    losses.coordinate_l1,
    lambda e, t, m: losses.ellipse_quantile(e, CONFIDENT, t, m),
    lambda e, t, m: losses.error_likelihood(e, CONFIDENT, t, m, 1e4),
])  # fmt: skip
def test_hidden_joints_and_nan_truth_do_not_count(loss):
    truth = draw(2, 3, 2, seed=1)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    results = []
    for hidden in (0.0, 1e3, float("nan")):
        estimate = draw(2, 3, 2).requires_grad_()
        changed = torch.where(mask[..., None], truth, truth + hidden)
        value = loss(estimate, changed, mask)
        value.sum().backward()
        assert value.shape == (2,) and float(value[1].detach()) == 0
        assert (estimate.grad[~mask] == 0).all() and torch.isfinite(estimate.grad).all()
        results.append(value.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    # A visible joint whose truth is NaN does not count either.
    nan_truth = truth.clone()
    nan_truth[0, 0] = float("nan")
    assert torch.isfinite(loss(draw(2, 3, 2), nan_truth, mask)).all()


def test_error_likelihood():
    covariance = torch.tensor([[4.0, 1.0], [1.0, 2.0]]).expand(1, 1, 2, 2)
    estimate, truth = torch.zeros(1, 1, 2), torch.tensor([[[1.0, -2.0]]])
    value = losses.error_likelihood(estimate, covariance, truth, SEEN, 1e4, outliers=1e-9)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), covariance[0, 0])
    torch.testing.assert_close(value, -normal.log_prob(truth[0, 0])[None])
    # A gross outlier costs no more than the uniform density, and pulls no more.
    far = torch.full((1, 1, 2), 500.0).requires_grad_()
    value = losses.error_likelihood(far, covariance, truth, SEEN, 1e4, outliers=0.02)
    value.sum().backward()
    assert math.isclose(float(value.detach()), -math.log(0.02 / 1e4), rel_tol=1e-4)
    assert float(far.grad.abs().max()) < 1e-6


def test_confidence_entropy_is_least_at_the_frequency():
    found = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) < 0.7
    confidence = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])[:, None].expand(5, 1000)
    known = torch.ones(5, 1000, dtype=torch.bool)
    assert losses.confidence_entropy(confidence, found.expand(5, -1), known).argmin() == 2
    assert math.isfinite(float(losses.confidence_entropy(torch.ones(1, 1000), found, known[:1])))


@pytest.mark.parametrize(
    "dim, radius2, wrong", [(2, -2 * math.log(0.1), 0.828), (3, 6.2514, 0.871)]
)
def test_quantile_losses_are_least_where_the_share_is_held(dim, radius2, wrong):
    """Heavy tails: the likelihood's 90 % region holds less, in the image and in space."""
    generator = torch.Generator().manual_seed(dim - 2)
    error = torch.randn(1, 20001, dim, generator=generator)
    error[:, 1::8] *= 8.0  # one in eight is poor
    error[:, 0] = 0  # in space: the root
    square = error[0, 1:].square().sum(-1)
    seen = torch.ones(1, 20001, dtype=torch.bool)
    scales = torch.linspace(0.5, 8, 100)

    def held(loss, unit, *more, **options):
        def value(scale):
            covariance = (unit * scale) ** 2 * torch.eye(dim).expand(1, 20001, dim, dim)
            return float(loss(unit * error, covariance, 0 * error, *more, **options))

        best = scales[int(np.argmin([value(scale) for scale in scales]))]
        return float((square < radius2 * best**2).float().mean())

    if dim == 2:
        quantile = held(losses.ellipse_quantile, 1.0, seen)
        likelihood = held(losses.error_likelihood, 1.0, seen, area=6e4)
    else:  # mm
        quantile = held(losses.joint_quantile, 100.0, 0)
        likelihood = held(losses.joint_likelihood, 100.0, 0)
    assert abs(quantile - 0.9) < 0.01
    assert abs(likelihood - wrong) < 0.02 and abs(likelihood - 0.9) > 0.02
