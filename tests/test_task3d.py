import pytest
import torch
from test_models3d import SMALL

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.training.optimizer import make_optimizer
from ptri.training.task3d import RigTask, generated_batch

GENERATED = [
    *SMALL, "data.kind=generated", "train.batch_size=4", "train.lifter_epochs=1",
    "train.lifter_batch=2", "train.steps_per_epoch=3",
    "generated.max_views=3",
]  # fmt: skip


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


def test_a_run_of_the_lifter_alone_keeps_the_fusion(tmp_path, monkeypatch):
    monkeypatch.setattr("ptri.training.validation3d.NUM_LIFTED", 8)
    alone = [*GENERATED, "train.epochs=1", "train.lifter_views=3"]
    torch.manual_seed(0)
    old = PoseModel(config.load(None, alone), with_images=False)
    checkpoint.save_weights(tmp_path / "old.pt", old.state_dict(), {})
    new = ["train.new=lifter", "model.sizes.lifter_blocks=2"]
    with pytest.raises(UserError, match=r"init\.checkpoint_3d"):
        RigTask(config.load(None, [*alone, *new])).build_model()
    settings = config.load(None, [*alone, *new, f"init.checkpoint_3d={tmp_path / 'old.pt'}"])
    task = RigTask(settings)
    model = task.build_model().train()
    # Matrices are saved in half precision.
    for kept, own in zip(old.fusion.parameters(), model.fusion.parameters()):
        assert torch.allclose(kept, own, atol=1e-3)
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
