"""The pool of solved scenes: round trip, refusal, what training draws from it."""

import pytest
import torch
from test_generated import same
from test_models3d import SMALL

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.training import solved_scenes as pool
from ptri.training.task3d import RigTask

POOLED = [
    *SMALL, "data.kind=generated", "generated.min_views=2", "generated.max_views=3",
    "generated.pool_scenes=12", "train.max_frames=2", "train.batch_size=4", "train.new=head",
    "train.fusion_samples=2", "posterior.num_modes=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def lifter(tmp_path_factory):
    """Weights with a lifter, for the pool to be solved with."""
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


def test_pool_round_trip_and_refusal(tmp_path, lifter, monkeypatch):
    path = tmp_path / "pools" / "pool.pt"
    plan = settings(path, lifter)
    task = RigTask(plan)
    model = task.build_model().train()
    made = task.pool
    assert path.is_file() and not any(p.requires_grad for p in model.lifter.parameters())
    assert sum(len(group.scene.K) for group in made.frames) == 12
    assert [group.scene.K.shape[:3] for group in made.clips] == [(2, 2, 2)]
    assert {group.R.shape[2] for group in made.frames} == {2, 3}

    def never(*_):
        raise AssertionError("solved again")

    monkeypatch.setattr("ptri.training.solved_scenes._solve", never)
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
    model = task.build_model()
    alone = task.pool
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
