"""Training in 3D: turns of the steps, what each trains; the pool of solved scenes it draws from."""

import pytest
import torch
from test_generated import same
from test_models3d import SMALL

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.training import solved_scenes as pool
from ptri.training.optimizer import make_optimizer
from ptri.training.task3d import RigTask, generated_batch

GENERATED = [
    *SMALL, "data.kind=generated", "train.batch_size=4", "train.lifter_epochs=1",
    "train.lifter_batch=2", "train.steps_per_epoch=3",
    "generated.max_views=3",
]  # fmt: skip
POOLED = [
    *SMALL, "data.kind=generated", "generated.min_views=2", "generated.max_views=3",
    "generated.pool_scenes=12", "train.max_frames=2", "train.batch_size=4", "train.new=head",
    "train.fusion_samples=2", "posterior.num_modes=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def lifter(tmp_path_factory):
    """Weights to begin from, and for the pool to be solved with."""
    path = tmp_path_factory.mktemp("lifter") / "old.pt"
    torch.manual_seed(0)
    model = PoseModel(config.load(None, SMALL), with_images=False)
    checkpoint.save_weights(path, model.state_dict(), {})
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("ptri.training.solved_scenes.CHUNK", 4)
    monkeypatch.setattr("ptri.training.solved_scenes.POSTERIOR_SAMPLES", 16)
    monkeypatch.setattr("ptri.training.solved_scenes.SAMPLES", 4)


def settings(path, lifter, *more):
    named = [f"generated.pool={path}", f"init.checkpoint_3d={lifter}"]
    return config.load(None, [*POOLED, *named, *more])


def test_steps_take_turns():
    settings = config.load(None, GENERATED)
    lift = generated_batch(settings, 0, 0)
    assert lift.lift_only
    assert lift.scene.K.shape[:3] == (8, 1, 2)
    turns = [generated_batch(settings, 1, step) for step in (3, 4, 5, 8)]
    assert [turn.calibrated for turn in turns] == [False, True, False, False]
    assert [tuple(turn.scene.K.shape[:2]) for turn in turns] == [(4, 1), (4, 1), (1, 4), (2, 2)]


def test_ranks_share_the_global_batch():
    settings = config.load(None, GENERATED)
    whole = generated_batch(settings, 1, 3).scene.joints3d
    parts = [generated_batch(settings, 1, 3, rank, 2).scene.joints3d for rank in range(2)]
    assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(UserError, match=r"train\.batch_size"):
        generated_batch(settings, 1, 5, 0, 2)  # one scene of four frames, two processes


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_kind_of_step_trains_what_it_uses(optimizer):
    """Weights that a step does not use keep their values, whatever momentum they have.

    Muon used to move them by its full rate along old gradients.
    """
    settings = config.load(None, [*GENERATED, f"train.optimizer={optimizer}"])
    task = RigTask(settings)
    torch.manual_seed(0)
    model = task.build_model().train()
    steps = make_optimizer(task.parameter_groups(model), settings.train)
    always, clips = {"fusion.ray.weight"}, {"fusion.frames.0.output.weight"}
    moved = []
    for epoch, step in ((1, 5), (1, 6), (1, 7), (0, 0), (1, 8)):  # clip, frame, true cameras, lift
        batch = generated_batch(settings, epoch, step)
        values = task.training_step(model, batch, step)
        assert values["loss"].shape == (len(batch.scene.K),)
        assert bool(torch.isfinite(values["loss"]).all())
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        steps.zero_grad()
        values["loss"].mean().backward()
        steps.step()
        moved.append({k for k, p in model.named_parameters() if not torch.equal(p, before[k])})
    assert all(any(name.startswith("lifter.") for name in names) for names in moved)
    assert [always <= names for names in moved] == [True, True, True, False, True]
    assert [clips <= names for names in moved] == [True, False, False, False, True]


def test_a_run_of_the_lifter_alone_keeps_the_fusion(lifter, monkeypatch):
    monkeypatch.setattr("ptri.training.validation3d.NUM_LIFTED", 8)
    alone = [*GENERATED, "train.epochs=1", "train.lifter_views=3"]
    new = ["train.new=lifter", "model.sizes.lifter_blocks=2"]
    with pytest.raises(UserError, match=r"init\.checkpoint_3d"):
        RigTask(config.load(None, [*alone, *new])).build_model()
    settings = config.load(None, [*alone, *new, f"init.checkpoint_3d={lifter}"])
    task = RigTask(settings)
    model = task.build_model().train()
    weights, _ = checkpoint.load_weights(lifter)
    for name, value in model.fusion.state_dict().items():
        torch.testing.assert_close(value, weights[f"fusion.{name}"].float(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in model.fusion.parameters())
    batch = generated_batch(settings, 0, 0)
    assert batch.scene.K.shape[:3] == (8, 1, 3)
    task.training_step(model, batch, 0)["loss"].mean().backward()
    assert all(p.grad is not None for p in model.lifter.parameters())
    assert task.monitor in task.validate(model.eval()) and task.monitor != RigTask.monitor
    assert task.pictures(model) == {}


def test_validation_and_pictures(monkeypatch):
    monkeypatch.setattr("ptri.training.validation3d.NUM_SCENES", 8)
    task = RigTask(config.load(None, [*GENERATED, "evaluate.pictures=1"]))
    model = task.build_model().eval()
    metrics = task.validate(model)
    assert task.monitor in metrics
    assert all(value == value for value in metrics.values()), metrics
    pictures = task.pictures(model)
    assert next(iter(pictures.values())).shape[2] == 3


def test_end_to_end_step_reaches_the_heatmaps():
    overrides = [
        *SMALL, "data.root=data/demo", "data.train_subjects=[1]", "data.test_subjects=[9]",
        "data.image_size=64", "data.workers=0", "train.batch_size=2",
    ]  # fmt: skip
    task = RigTask(config.load(None, overrides))
    torch.manual_seed(0)
    model = task.build_model().train()
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    batch = next(task.batches(0, 1))
    values = task.training_step(model, batch, 0)
    # The 3D losses alone must reach the heatmaps, unless that is cut.
    weights = model.network2d.head.heatmaps.weight
    (values["loss/x3d"] + values["loss/pose"]).mean().backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) > 0
    model.zero_grad()
    task = RigTask(config.load(None, [*overrides, "train.gradient_2d=0"]))
    values = task.training_step(model, batch, 0)
    (values["loss/x3d"] + values["loss/pose"]).mean().backward()
    assert weights.grad is None
    task.training_step(model, batch, 0)["loss/hm"].mean().backward()
    assert float(weights.grad.abs().max()) > 0


def test_pool_round_trip_and_refusal(tmp_path, lifter, monkeypatch):
    path = tmp_path / "pools" / "pool.pt"
    plan = settings(path, lifter)
    task = RigTask(plan)
    model, made = task.build_model().train(), task.pool
    assert path.is_file() and not any(p.requires_grad for p in model.lifter.parameters())
    assert sum(len(group.scene.K) for group in made.frames) == 12
    assert [group.scene.K.shape[:3] for group in made.clips] == [(2, 2, 2)]
    assert {group.R.shape[2] for group in made.frames} == {2, 3}

    monkeypatch.delattr("ptri.training.solved_scenes._solve")  # nothing is solved again
    again = pool.open_pool(model, plan)
    assert same(made, again)
    # What the content does not depend on may change; anything else is refused by name.
    pool.open_pool(model, settings(path, lifter, "train.lr=0.1", "model.fusion_samples=2"))
    for change, named in (
        ("generated.errors.noise=0.02", r"generated\.noise"), ("run.seed=3", r"run\.seed"),
        ("posterior.children=0.5", r"posterior\.children"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"other settings: .*{named}"):
            pool.open_pool(model, settings(path, lifter, change))
    model.lifter.requires_grad_(True)
    with torch.no_grad():
        next(model.lifter.parameters()).add_(0.1)
    with pytest.raises(UserError, match="lifter"):
        pool.open_pool(model, plan)


def test_pools_of_other_settings_are_used_beside_it(tmp_path, lifter):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    other = settings(first, lifter, "generated.errors.noise=0.05")
    task = RigTask(other)
    model, alone = task.build_model(), task.pool
    both = settings(second, lifter, f"generated.more_pools=[{first}]")
    found = pool.open_pool(model, both)
    assert len(found.frames) == 2 * len(alone.frames) and len(found.clips) == 2 * len(alone.clips)
    torch.testing.assert_close(found.frames[-1].R, alone.frames[-1].R, rtol=0, atol=0)
    assert not torch.equal(found.frames[0].scene.keypoints.xy, alone.frames[0].scene.keypoints.xy)
    pool.open_pool(model, settings(second, lifter))  # the same file without them

    content = checkpoint.read_tensors(first, pool.KIND)
    content["settings"]["lifter"] = "0"
    checkpoint.write_tensors(first, pool.KIND, content)
    with pytest.raises(UserError, match="another lifter"):
        pool.open_pool(model, both)
    first.unlink()
    with pytest.raises(UserError, match=r"generated.more_pools: no such file"):
        pool.open_pool(model, both)


def test_steps_draw_from_the_pool_in_turns(tmp_path, lifter):
    task = RigTask(settings(tmp_path / "pool.pt", lifter))
    model = task.build_model().train()
    batches = list(task.batches(0, 6))
    assert [batch.posterior.R.shape[0] for batch in batches] == [2, 1, 2] * 2
    assert [batch.scene.K.shape[1] for batch in batches] == [1, 1, 2] * 2
    for batch in batches:
        true = torch.equal(batch.posterior.t[0], batch.scene.cameras.t)
        assert true == (len(batch.posterior.R) == 1)
        assert torch.allclose(batch.posterior.log_weights.logsumexp(0), torch.zeros(1), atol=1e-6)
    assert same(batches[3].scene, next(task.batches(3, 4)).scene)  # depends on its number only
    parts = [next(task.batches(3, 4, rank, 2)).scene.joints3d for rank in range(2)]
    assert torch.equal(torch.cat(parts), batches[3].scene.joints3d)
    for step, batch in enumerate(batches[:3]):
        values = task.training_step(model, batch, step)
        assert "loss/lift" not in values and bool(torch.isfinite(values["loss"]).all())
        model.zero_grad()
        values["loss"].mean().backward()
        assert float(model.fusion.ray.weight.grad.abs().sum()) > 0


def test_a_pool_needs_a_lifter_and_is_a_file_of_its_kind(tmp_path, lifter):
    bare = config.load(None, [*POOLED[:-4], f"generated.pool={tmp_path / 'pool.pt'}"])
    bare = config.replace(bare, train__new="nothing")
    with pytest.raises(UserError, match=r"init\.checkpoint_3d"):
        RigTask(bare).build_model()
    with pytest.raises(UserError, match="expected ptri-pool"):
        RigTask(settings(lifter, lifter)).build_model()
