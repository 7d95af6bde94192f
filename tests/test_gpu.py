"""What must work on a GPU. `make gpu` runs it on one; elsewhere the CPU stands in.

Tests of arithmetic (``device``) run on the CPU. Tests of where tensors are (``place``) run on a
device that computes on the CPU and refuses what a GPU refuses (`benchmark.speed.pretend`).
"""

import contextlib
import copy
import json
import os
import signal

import gpu
import pytest
import torch
import torch.distributed as dist
from benchmark import commands
from benchmark.speed.pretend import DEVICE as PRETENDED
from benchmark.speed.pretend import pretend
from h36m_fixture import make_tiny_h36m
from recording_fixture import run_script
from test_models3d import SMALL
from torch.nn.parallel import DistributedDataParallel
from toy_task import ToyTask, assert_same_run, load_last, read_lines, toy_config

import ptri
from ptri import config
from ptri.data.multiview import open_split
from ptri.detectors.movenet import THUNDER, MoveNetDetector
from ptri.detectors.multipose import Multipose
from ptri.detectors.peaks import fit_peak_errors
from ptri.errors import UserError
from ptri.evaluation.evaluate import evaluate
from ptri.geometry.rotations import rotation_angle
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_model
from ptri.people.scenes import generate_batch
from ptri.posterior.moments import posterior_mean
from ptri.rig.estimate import solve
from ptri.rig.joints import body_under
from ptri.structures import constant, to_device, tree_map
from ptri.system import World
from ptri.training import engine, state
from ptri.training.optimizer import make_optimizer, update_ema
from ptri.training.task2d import HeatmapTask
from ptri.training.task3d import RigTask, generated_batch

GPU = [pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else []
CPU = torch.device("cpu")
SHIPPED = ["run.name=test", "init.checkpoint_3d=checkpoints/ptri_3d.pt"]


@pytest.fixture(params=["cpu", *GPU])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=["pretend", *GPU])
def place(request):
    """A device that is not the CPU, and what was seen on it (None on a real one)."""
    real = request.param != "pretend"
    with contextlib.nullcontext() if real else pretend() as trace:
        yield torch.device("cuda") if real else PRETENDED, trace


def on_cpu(tree):
    return to_device(tree, CPU)


# --- the pretended device itself -----------------------------------------------------------------


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with pretend() as trace:
        far, near = torch.ones(3).to(PRETENDED), torch.ones(3)
        with pytest.raises(RuntimeError, match="a tensor on the CPU among those of the GPU"):
            far + near
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        with pytest.raises(RuntimeError, match="read before the copy"):
            far.to("cpu", non_blocking=True)
        assert torch.equal(on_cpu(far), near) and torch.equal(to_device(near, PRETENDED), far)
        trace.waits.clear()
        assert (far + 1).sum() == 6 and far[[0, 2]].tolist() == [1, 1]
        far[far > 0] = 2.0  # a masked fill: no wait
        kinds = sorted(kind for _, kind in trace.waits.elements())
        assert kinds == ["_local_scalar_dense", "to the device", "tolist"]
        weight = torch.ones(3).to(PRETENDED).requires_grad_()
        (weight * far[constant((0, 1, 2), PRETENDED)]).sum().backward()
        assert on_cpu(weight.grad).tolist() == [2, 2, 2]


# --- make gpu ------------------------------------------------------------------------------------


def test_make_gpu_says_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, said, _ = run_script(monkeypatch, capsys, "scripts/gpu.py")
    assert status == 0 and said.count("\n") == 1 and "no CUDA device" in said


def test_the_page_keeps_all_but_the_output(tmp_path, monkeypatch):
    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- gpu-output -->\nold\n<!-- /gpu-output -->\nafter\n")
    said = iter([("...\nFAILED one\n1 failed", True), ("a table\n\nwritten: x", False)])
    monkeypatch.setattr(gpu, "_run", lambda arguments, seconds: next(said))
    assert gpu.check("cpu", page) == 1
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- /gpu-output -->\nafter\n")
    assert "old" not in text and "FAILED one\n1 failed" in text and "a table\n```" in text
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(UserError, match="gpu-output"):
        gpu.check("cpu", tmp_path / "other.md")


@pytest.mark.slow
def test_the_benchmark_of_training(device, tmp_path, capsys):
    small = "--sizes", "64", "--frames", "1", "--quick", "--out", str(tmp_path)
    assert commands.main(["train", "--device", device.type, *small]) == 0
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "train.json").read_text())
    assert "images/s" in said and all(value > 0 for value in content["throughput"].values())
    assert {"detect", "lift", "posterior", "fuse", "backward"} <= content["stages"].keys()
    assert sum(content["waits"]["3D training step"].values()) < 20
    assert sum(content["waits"]["2D training step"].values()) < 5


# --- where tensors are ---------------------------------------------------------------------------


def train_step(task, batch, number, place):
    """Losses and gradients of a step that ends with new weights and averages."""
    torch.manual_seed(0)
    model = task.build_model().train().to(place)
    optimizer = make_optimizer(task.parameter_groups(model), task.config.train)
    average = copy.deepcopy(model)
    values = task.training_step(model, to_device(batch, place), number)
    values["loss"].mean().backward()
    optimizer.step()
    update_ema(average, model, 0.9, 3)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return on_cpu({name: v.detach() for name, v in values.items()}), on_cpu(grads)


@pytest.mark.parametrize(
    "turn, waits", [(4, 0), (0, 0), pytest.param(5, 11, marks=pytest.mark.slow)]
)
def test_a_3d_step_is_that_of_the_cpu(place, turn, waits):
    """The true cameras, the lifter alone, clips; and how often the CPU waits for the GPU."""
    device, trace = place
    options = "data.kind=generated", "train.batch_size=4", "train.lifter_epochs=1"
    task = RigTask(config.load(None, [*SHIPPED, *options, "train.lifter_batch=2"]))
    batch = generated_batch(task.config, int(turn > 0), turn)
    losses, grads = train_step(task, batch, turn, CPU)
    for _ in range(2):  # constants are made in the first
        if trace:
            trace.waits.clear()
        ours, own = train_step(task, batch, turn, device)
    # Of a rig whose optimum is flat the last digit decides; the middle one is of the rest.
    error = ((ours["loss"] - losses["loss"]) / losses["loss"].abs().clamp_min(1)).abs()
    assert float(error.median()) < 1e-3 and own.keys() == grads.keys()
    assert all(bool(v.isfinite().all()) for v in (*ours.values(), *own.values()))
    if turn in (0, 4):  # nothing is solved
        torch.testing.assert_close(own, grads, rtol=2e-2, atol=1e-3)
    if trace:
        # Without those of this test, which moves weights and results.
        inside = {k: n for k, n in trace.waits.items() if k[0] != "outside ptri"}
        assert sum(inside.values()) <= waits, inside


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    make_tiny_h36m(folder, num_frames=2, size=128)
    return [
        *SMALL,
        f"data.root={folder}",
        "data.train_subjects=[1]",
        "data.test_subjects=[9]",
        "data.image_size=64",
        "data.workers=0",
        "train.batch_size=2",
        "train.warmup_steps=0",
        "evaluate.batch_size=2",
        "evaluate.pictures=1",
        "evaluate.pool_frames=4",
    ]


def test_a_2d_step_is_that_of_the_cpu(place, tiny):
    options = "train.optimizer=muon", "train.weight_orientation=1"
    task = HeatmapTask(config.load(None, [*tiny, *options]))
    batch = next(task.batches(0, 1))
    losses, grads = train_step(task, batch, 0, CPU)
    ours, own = train_step(task, batch, 0, place[0])
    torch.testing.assert_close(ours, losses, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own, grads, rtol=5e-2, atol=1e-3)


@pytest.mark.slow
def test_an_end_to_end_step_is_that_of_the_cpu(place, tiny):
    task = RigTask(config.load(None, tiny))
    batch = next(task.batches(0, 1))
    losses, _ = train_step(task, batch, 0, CPU)
    ours, own = train_step(task, batch, 0, place[0])
    torch.testing.assert_close(ours["loss/hm"], losses["loss/hm"], rtol=1e-3, atol=1e-4)
    assert all(bool(value.isfinite().all()) for value in own.values())
    assert float(own["network2d.head.heatmaps.weight"].abs().max()) > 0


@pytest.mark.slow
def test_solve_is_that_of_the_cpu(place):
    """Tolerance: 0.01 deg and 1 mm of pooled frames; pretended 1e-13 deg and 0.0005 mm."""
    device, trace = place
    settings = config.load(None, [*SHIPPED, "generated.families=[ring]"])
    scene = generate_batch(settings, 0, 0, 2, 4, 8)
    model = build_model(settings, with_images=False).eval()

    @torch.no_grad()
    def run(scene):
        solution = solve(model, scene.keypoints, scene.K, settings.posterior, 0)
        body = body_under(model, scene.keypoints, scene.K, solution.posterior, solution.sides)
        return posterior_mean(solution.posterior)[0], body.joints3d, solution.verdicts

    R, joints, verdicts = run(scene)
    model.to(device)
    scene = to_device(scene, device)
    run(scene)
    if trace:
        trace.waits.clear()
    ours = run(scene)
    if trace:
        assert sum(trace.waits.values()) <= 50, trace.waits  # measured 40; once 389 and more
    own_R, own_joints = on_cpu(ours[:2])
    assert float(torch.rad2deg(rotation_angle(own_R @ R.mT)).max()) < 0.01
    assert float((own_joints - joints).norm(dim=-1).max()) < 1.0
    assert [verdict.code for verdict in ours[2]] == [verdict.code for verdict in verdicts]


def test_movenet_is_that_of_the_cpu(place):
    """And the CPU waits for no more than the pictures, where they are not there yet."""
    device, trace = place
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = MoveNetDetector(THUNDER)(images)
    detector = MoveNetDetector(THUNDER).to(device)
    detector(images)  # constants are made
    for given, waits in ((images, 1), (images.to(device), 0)):
        if trace:
            trace.waits.clear()
        found = detector(given)
        assert not trace or trace.waits.total() == waits
        assert found.xy.device.type == device.type
        for mine, theirs in zip(to_device(found, CPU), expected):
            error = (mine - theirs).abs() / theirs.abs().clamp_min(1)
            assert float(error.median()) < 1e-3  # of noise one peak is as good as another
    # What is fitted to peaks is fitted on the CPU, where the truth is.
    peaks = to_device(detector.peaks(images), CPU)
    fitted = fit_peak_errors(detector.peaks(images), peaks.xy + 1, 256)
    assert fitted.log_variance == pytest.approx(fit_peak_errors(peaks, peaks.xy + 1, 256)[0])
    people = Multipose().to(device)(images.to(device))
    assert people.boxes.device.type == device.type and people.boxes.shape == (2, 6, 4)


@pytest.mark.slow
def test_the_api_and_an_evaluation_are_those_of_the_cpu(place, tiny, tmp_path):
    """Tables, predictions and pictures included: all that is read back to the CPU."""
    settings = config.load(None, [*SHIPPED, "generated.families=[ring]"])
    scene = generate_batch(settings, 0, 0, 1, 4, 6)
    xy, covariance, confidence = (part[0] for part in scene.keypoints)
    options = {"device": place[0], "max_frames": 5, "scale": {"subject_height": 1700}}
    estimates = [
        ptri.estimate_rig(xy, scene.K[0, 0], confidence, covariance, **more)
        for more in (options | {"device": None}, options)
    ]
    assert estimates[0].verdict.code is estimates[1].verdict.code
    assert estimates[0].frames == estimates[1].frames
    torch.testing.assert_close(on_cpu(estimates[1].R), estimates[0].R, rtol=0, atol=1e-4)
    options = config.load(None, tiny)
    figures = []
    for number, where in enumerate((CPU, place[0])):
        torch.manual_seed(0)
        model = PoseModel(options).eval().to(where)
        folder = tmp_path / str(number)
        figures.append(evaluate(model, open_split(options, "test"), options, folder)[0])
        assert len(list((folder / "pictures").iterdir())) == 5
    for name in ("x2d/l1", "x2d/l2", "loss/hm"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-3)
    assert figures[1].keys() == figures[0].keys()


def test_a_training_step_asks_the_gpu_once(tmp_path):
    """For losses, gradient norm and whether they are finite together."""
    for epochs in (1, 2):
        with pretend() as trace:
            engine.fit(
                ToyTask(
                    toy_config(
                        tmp_path / str(epochs), f"run.device={PRETENDED}", f"train.epochs={epochs}"
                    )
                )
            )
        steps = trace.waits
        lines = {line for line, kind in steps if kind == "tolist"}
        assert len(lines) == 1 and lines.pop().startswith("training/engine.py")
        assert sum(n for (_, kind), n in steps.items() if kind == "tolist") == 8 * epochs


# --- precision, averages, resuming ---------------------------------------------------------------


@pytest.fixture
def any_precision(monkeypatch):
    """fp16 on the CPU too, which has a gradient scaler: the engine asks for a GPU for speed."""
    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    monkeypatch.setattr("ptri.training.state.amp_type", lambda choice, device: types[choice])


@pytest.mark.parametrize(
    "amp", ["bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("off", "fp16"))]
)
def test_2d_training_in_every_precision(device, amp, tiny, tmp_path, any_precision):
    options = f"run.out={tmp_path}", f"run.device={device.type}", f"train.amp={amp}"
    steps = "train.epochs=1", "train.steps_per_epoch=3", "train.log_every_steps=1"
    engine.fit(HeatmapTask(config.load(None, [*tiny, *options, *steps, "train.lr=1e-4"])))
    saved = load_last(tmp_path)
    assert saved["step"] == 3
    for part in ("model", "ema"):
        assert all(v.dtype != torch.float16 for v in saved[part].values())  # weights stay float32
        assert all(bool(v.isfinite().all()) for v in saved[part].values())
    changed = [not torch.equal(saved["model"][k], saved["ema"][k]) for k in saved["model"]]
    assert any(changed)
    losses = [line["loss"] for line in read_lines(tmp_path, "train")]
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)
    assert ("scale" in saved["scaler"]) == (amp == "fp16")


def test_the_3d_losses_keep_their_precision(device):
    """Reduced precision is for the 2D network: in bf16 a truth of 4 m is rounded by 16 mm."""
    task = RigTask(config.load(None, [*SHIPPED, "data.kind=generated", "train.batch_size=4"]))
    torch.manual_seed(0)
    model = task.build_model().train().to(device)
    batch = to_device(generated_batch(task.config, 1, 4), device)
    full = task.training_step(model, batch, 4)
    with torch.autocast(device.type, torch.bfloat16):
        reduced = task.training_step(model, batch, 4)
    torch.testing.assert_close(reduced, full, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_3d_training_in_reduced_precision(device, amp, tiny, tmp_path, any_precision):
    """It failed at the first step: keypoints of one type, features of another."""
    options = f"run.out={tmp_path}", f"run.device={device.type}", f"train.amp={amp}"
    steps = "train.epochs=1", "train.steps_per_epoch=2", "train.log_every_steps=1"
    engine.fit(RigTask(config.load(None, [*tiny, *options, *steps, "train.lr=1e-4"])))
    losses = [line["loss/hm"] for line in read_lines(tmp_path, "train")]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert all(bool(value.isfinite().all()) for value in load_last(tmp_path)["ema"].values())


class Overflowing(ToyTask):
    """The gradient of step 3 is finite in float32 but not in float16."""

    def training_step(self, model, batch, step):
        losses = super().training_step(model, batch, step)
        return losses | ({"loss": losses["loss"] * 1e30} if step == 3 else {})


def test_a_skipped_step_and_the_scaler_are_resumed(device, tmp_path, any_precision):
    """An overflow leaves the weights alone and halves the scale; both survive a stop."""
    options = f"run.device={device.type}", "train.amp=fp16", "train.save_every_steps=1"

    def stop(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    engine.fit(Overflowing(toy_config(whole, *options), dropout=0.2))
    saves = []
    save = state.checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            state.checkpoint,
            "save",
            lambda path, content: (saves.append(copy.deepcopy(content)), save(path, content)),
        )
        with pytest.raises(SystemExit):
            engine.fit(Overflowing(toy_config(parts, *options), dropout=0.2, hook=stop))
    before, after = (next(c for c in saves if c["step"] == step) for step in (3, 4))
    assert all(torch.equal(v, after["model"][k]) for k, v in before["model"].items())
    assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2
    assert load_last(parts)["scaler"] == saves[-1]["scaler"]
    engine.fit(Overflowing(toy_config(parts, *options), dropout=0.2), resume=True)
    assert_same_run(whole, parts)
    assert load_last(whole)["scaler"] == load_last(parts)["scaler"]


def test_averaged_weights(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).to(device)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
        model[1].num_batches_tracked.fill_(7)
    update_ema(average, model, decay=0.9, step=10_000)
    for old, new in zip(average.parameters(), model.parameters()):
        torch.testing.assert_close(old, new - 0.9)
    assert int(average[1].num_batches_tracked) == 7


def test_one_process_of_ddp_follows_plain_training(device, tmp_path):
    """By NCCL on a GPU, gloo on the CPU: gathered gradients of one process are its own."""
    config_ = toy_config(tmp_path, f"run.device={device.type}")
    world = World(0, 1, torch.device(device.type, 0) if device.type == "cuda" else device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        weights = []
        for parallel in (False, True):
            task = ToyTask(config_, idle=True)
            run = state.build(task, world, tmp_path)
            if parallel:
                ids = [0] if device.type == "cuda" else None
                run.losses = DistributedDataParallel(
                    run.losses, device_ids=ids, find_unused_parameters=True
                )
            for batch in task.batches(0, 4):
                values = engine._training_step(run, batch)
            weights.append(on_cpu(tree_map(torch.Tensor.clone, run.model.state_dict())))
            number = torch.ones(2, device=world.device)
            dist.all_reduce(number)
            assert values["loss"] > 0 and number.tolist() == [1, 1]
            run.losses = run.model
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-7)
    finally:
        dist.destroy_process_group()
