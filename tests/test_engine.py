"""The engine on a toy task: what it promises about averaging, stopping, resuming, several ranks."""

import itertools
import multiprocessing
import os
import signal
import socket

import pytest
import torch
import toy_task
from torch import nn
from toy_task import ToyTask, assert_same_run, load_last, read_lines, toy_config

from ptri import checkpoint
from ptri.errors import UserError
from ptri.system import World
from ptri.training import engine
from ptri.training.optimizer import amp_type, learning_rate_factor, update_ema
from ptri.training.state import check_batch

RANKS_RTOL = 1e-5  # two processes against one; measured: 2e-7 losses, 5e-7 weights


def lines(folder, split="train"):
    return read_lines(folder, split)


def errors(folder):
    """What each validation found."""
    return [line["error"] for line in lines(folder, "val")]


def fit(folder, *overrides, kind=ToyTask, resume=False, overwrite=False, **options):
    """Trains the toy in this process; the task."""
    task = kind(toy_config(folder, *overrides), **options)
    engine.fit(task, resume, overwrite)
    return task


PROCESSES = multiprocessing.get_context("forkserver")  # imports once, then forks in a moment
PROCESSES.set_forkserver_preload(
    ["ptri.training.engine", "torch.utils.tensorboard", "torch._dynamo"]
)


def start(folder, *overrides, ranks=1, **options):
    """Trains the toy in processes of its own; returns their exit codes and what they said."""
    log = folder / "stderr.txt"
    log.unlink(missing_ok=True)
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            options |= {"world": ranks, "port": free.getsockname()[1]}
    processes = []
    for rank in range(ranks):
        given = (folder, log, options | {"rank": rank}, *overrides)
        processes.append(PROCESSES.Process(target=toy_task.run, args=given))
        processes[-1].start()
    for process in processes:
        process.join(20)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes], log.read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    codes, said = start(folder, "train.log_every_steps=3")
    assert codes == [0], said
    return folder


def test_it_learns_and_writes_the_run_folder(tmp_path):
    fit(tmp_path)
    names = {path.name for path in (tmp_path / "toy").iterdir()}
    assert names == {
        "config.yaml", "log.txt", "metrics.jsonl", "tensorboard", "last.pt", "best.pt",
    }  # fmt: skip
    assert len(errors(tmp_path)) == 3 and errors(tmp_path)[-1] < errors(tmp_path)[0]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 25))


def test_what_is_evaluated_is_what_is_saved(tmp_path):
    evaluated = []

    class Watched(ToyTask):
        def validate(self, model):
            evaluated.append({name: v.clone() for name, v in model.state_dict().items()})
            return super().validate(model)

    fit(tmp_path, kind=Watched)
    best = min(range(3), key=errors(tmp_path).__getitem__)
    weights, meta = checkpoint.load_weights(tmp_path / "toy/best.pt")
    assert meta["best"] == errors(tmp_path)[best] and meta["epoch"] == best + 1
    assert all(torch.equal(value, weights[name]) for name, value in evaluated[best].items())
    raw = load_last(tmp_path, "best.pt")["model"]
    assert not torch.equal(raw["layers.0.weight"], weights["layers.0.weight"])  # EMA, not raw


def test_no_averaging(tmp_path):
    fit(tmp_path, "train.ema_decay=0", "train.epochs=1")
    state = load_last(tmp_path)
    assert all(torch.equal(value, state["ema"][name]) for name, value in state["model"].items())


def test_best_keeps_the_lowest_metric(tmp_path):
    class Worse(ToyTask):
        values = iter([3.0, 1.0, 2.0, float("nan")])

        def validate(self, model):
            return {"error": next(self.values)}

    fit(tmp_path, "train.epochs=4", kind=Worse)
    best = load_last(tmp_path, "best.pt")
    assert (best["epoch"], best["best"]) == (2, 1.0) and load_last(tmp_path)["best"] == 1.0


def test_ema_update_by_hand():
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)  # weights are 1, running means 0
    nn.init.zeros_(average.weight)
    model.running_mean.fill_(1)
    model.num_batches_tracked.fill_(1)
    update_ema(average, model, decay=0.9, step=10_000)
    assert average.weight.item() == average.running_mean.item() == pytest.approx(0.1)
    assert average.num_batches_tracked.item() == 1
    update_ema(average, model, decay=0.9, step=0)  # early on: 0.1 of the old, 0.9 of the new
    assert average.weight.item() == pytest.approx(0.91)


def test_learning_rate():
    factors = [learning_rate_factor(step, 100, 10, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factors[10] == 1 and factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    short = [learning_rate_factor(step, 4, 1000, 0.0) for step in range(4)]
    assert max(short) == 1  # a run shorter than the warm-up still reaches the full rate


def test_gradients_are_clipped_and_their_norm_logged(tmp_path, monkeypatch):
    seen = []

    class Watched(ToyTask):
        def build_model(self):
            self.model = super().build_model()
            return self.model

        def batches(self, *args):
            for batch in super().batches(*args):
                yield batch
                grads = [weight.grad.flatten() for weight in self.model.parameters()]
                seen.append(torch.cat(grads).norm().item())

    monkeypatch.setattr(engine, "GRAD_CLIP", 0.5)
    fit(tmp_path, "train.epochs=1", kind=Watched)
    logged = [line["grad_norm"] for line in lines(tmp_path)]
    assert max(logged) > 1 and max(seen) <= 0.5 + 1e-6


@pytest.mark.parametrize("at, number, code, saved", [
    (11, signal.SIGKILL, -9, 10), (16, signal.SIGKILL, -9, 16), (17, signal.SIGKILL, -9, 16),
    (12, signal.SIGTERM, 143, 13), (12, signal.SIGINT, 130, 13),
])  # fmt: skip
def test_stopped_and_resumed_is_bit_identical(tmp_path, uninterrupted, at, number, code, saved):
    settings = ["train.log_every_steps=3", "train.save_every_steps=5"]  # 8 steps per epoch
    codes, said = start(tmp_path, *settings, strike=(at, number))
    assert codes == [code] and "Traceback" not in said
    assert ("--resume" in said) == (code > 0)
    assert load_last(tmp_path)["step"] == saved
    codes, said = start(tmp_path, *settings, flags={"resume": True})
    assert codes == [0], said
    assert_same_run(tmp_path, uninterrupted)


def test_another_seed_differs(tmp_path, uninterrupted):
    assert start(tmp_path, "train.log_every_steps=3", "run.seed=1")[0] == [0]
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, uninterrupted)


def test_a_stop_during_validation_repeats_it(tmp_path, uninterrupted):
    class Stopped(ToyTask):
        def validate(self, model):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "train.log_every_steps=3", kind=Stopped, dropout=0.2)
    assert stopped.value.code == 143
    assert (load_last(tmp_path)["step"], load_last(tmp_path)["epoch"]) == (8, 0)
    again = fit(tmp_path, "train.log_every_steps=3", dropout=0.2, resume=True)
    assert len(again.seen) == 16  # the first epoch's steps are not repeated
    assert_same_run(tmp_path, uninterrupted)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resuming_does_not_load_what_it_skips(tmp_path):
    def stop(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(tmp_path, "train.epochs=1", hook=stop)
    resumed = fit(tmp_path, "train.epochs=1", resume=True)
    assert resumed.seen == fit(tmp_path / "whole", "train.epochs=1").seen[6:]


def test_a_finished_run_has_nothing_to_do(tmp_path):
    fit(tmp_path, "train.epochs=1")
    before = (tmp_path / "toy/last.pt").read_bytes()
    fit(tmp_path, "train.epochs=1", resume=True)
    assert (tmp_path / "toy/last.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_names_its_samples(tmp_path):
    with pytest.raises(UserError) as caught:
        fit(tmp_path, "train.save_every_steps=1", bad_frame=7)
    text = str(caught.value)
    task = ToyTask(toy_config(tmp_path))
    step = next(k for k, batch in enumerate(task.batches(0, 8)) if 7 in batch.frame)
    assert "\n" not in text and "subject 9, frame 7;" in text + ";" and f"step {step}," in text
    assert text.count("frame") == 1  # only the bad sample
    state = load_last(tmp_path)
    assert state["step"] == step
    assert all(value.isfinite().all() for value in state["model"].values())
    assert "not finite" in (tmp_path / "toy/log.txt").read_text()


class Kinked(ToyTask):
    """The loss is 0 in step 3, and its slope that of sqrt at 0, times 0: NaN."""

    def training_step(self, model, batch, step):
        losses = super().training_step(model, batch, step)
        return losses | ({"loss": (losses["loss"] * 0).sqrt()} if step == 3 else {})


class Singular(ToyTask):
    def training_step(self, model, batch, step):
        if step == 3:
            torch.linalg.cholesky(torch.full((2, 2), float("nan")))
        return super().training_step(model, batch, step)


@pytest.mark.parametrize("kind, words", [
    (Kinked, r"gradient norm is not finite at epoch 0, step 3,"),
    (Singular, r"cholesky.*epoch 0, step 3"),
])  # fmt: skip
def test_other_failures_of_numbers_stop_too(tmp_path, kind, words):
    with pytest.raises(UserError, match=words):
        fit(tmp_path, kind=kind)


class Overflowing(ToyTask):
    """From step 3 on for a while, gradients that are finite in float32 but not in float16."""

    steps = 2

    def training_step(self, model, batch, step):
        losses = super().training_step(model, batch, step)
        return losses | ({"loss": losses["loss"] * 1e30} if 3 <= step < 3 + self.steps else {})


def test_fp16_skips_steps_that_overflow(tmp_path, monkeypatch):
    """On the CPU, which has a gradient scaler too: the engine asks for a GPU only for speed."""
    monkeypatch.setattr("ptri.training.state.amp_type", lambda choice, device: torch.float16)
    fit(tmp_path, kind=Overflowing)
    norms = [line["grad_norm"] for line in lines(tmp_path)]
    skipped = [step for step, norm in enumerate(norms) if norm is None]
    assert {3, 4} <= set(skipped) <= {0, 1, 2, 3, 4}  # the first scale may be too large as well
    assert load_last(tmp_path)["scaler"]["scale"] == 2.0 ** (16 - len(skipped))  # halved each time
    assert errors(tmp_path)[-1] < errors(tmp_path)[0]
    monkeypatch.setattr(Overflowing, "steps", 100)
    with pytest.raises(UserError, match=r"gradient norm is not finite at epoch 2, step 23,"):
        fit(tmp_path / "always", "train.epochs=4", kind=Overflowing)


def test_bf16(tmp_path):
    fit(tmp_path, "train.amp=bf16")
    assert errors(tmp_path)[-1] < errors(tmp_path)[0]


def test_overwrite_destroys_nothing_until_the_model_is_built(tmp_path):
    class Broken(ToyTask):
        def steps_per_epoch(self):
            raise UserError("data.root: no such folder")

    def content():
        return {p: p.read_bytes() for p in (tmp_path / "toy").rglob("*") if p.is_file()}

    fit(tmp_path, "train.epochs=1")
    before = content()
    with pytest.raises(UserError, match="exists"):
        fit(tmp_path)
    with pytest.raises(UserError, match=r"data\.root"):
        fit(tmp_path, kind=Broken, overwrite=True)
    assert content() == before
    fit(tmp_path, "train.epochs=1", "run.seed=9", overwrite=True)
    assert content()[tmp_path / "toy/last.pt"] != before[tmp_path / "toy/last.pt"]


def test_resuming_another_model_data_set_or_configuration(tmp_path):
    fit(tmp_path, "train.epochs=1")
    with pytest.raises(UserError, match=r"last\.pt: weights of another architecture"):
        fit(tmp_path, width=9, resume=True)
    with pytest.raises(UserError, match="steps per epoch"):
        fit(tmp_path, "train.batch_size=24", resume=True)
    fit(tmp_path, "train.epochs=2", resume=True)
    assert "train.epochs: 2 (was 1)" in (tmp_path / "toy/log.txt").read_text()
    assert len(lines(tmp_path, "val")) == 2


@pytest.mark.parametrize("capability, bf16, amx, expected", [
    ("AVX2", False, False, None), ("AVX2", True, True, None), ("AVX512", False, False, None),
    ("AVX512", True, False, torch.bfloat16), ("AVX512", False, True, torch.bfloat16),
])  # fmt: skip
def test_auto_is_bf16_on_a_cpu_that_has_it(monkeypatch, capability, bf16, amx, expected):
    """The second: a CPU that has it, of which torch may use only AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert amp_type("auto", torch.device("cpu")) is expected


def test_unfit_precisions():
    cpu = torch.device("cpu")
    assert amp_type("off", cpu) is None and amp_type("bf16", cpu) is torch.bfloat16
    with pytest.raises(UserError, match=r"train\.amp"):
        amp_type("fp16", cpu)


@pytest.mark.parametrize("idle", [False, True])
def test_two_processes_follow_one(tmp_path, idle):
    """Also stopped by a signal to one of them, and resumed; with weights that are often idle."""
    fit(tmp_path / "one", idle=idle)
    folder = tmp_path / "two"
    folder.mkdir()
    codes, said = start(folder, ranks=2, dropout=0.0, idle=idle, strike=(12, signal.SIGTERM))
    assert codes == [143, 143], said
    assert load_last(folder)["step"] == 13  # both after the same step
    codes, said = start(folder, ranks=2, dropout=0.0, idle=idle, flags={"resume": True})
    assert codes == [0, 0], said
    ours, theirs = lines(tmp_path / "one"), lines(folder)
    assert len(ours) == len(theirs) == 24
    for a, b in zip(ours, theirs):
        assert a.pop("split") == b.pop("split")
        assert b == pytest.approx(a, rel=RANKS_RTOL)
    two, one = load_last(folder)["ema"], load_last(tmp_path / "one")["ema"]
    torch.testing.assert_close(two, one, rtol=RANKS_RTOL, atol=1e-6)


def test_one_process_with_a_loss_that_is_not_finite_stops_both(tmp_path):
    codes, said = start(tmp_path, ranks=2, bad_frame=7)
    assert codes == [1, 1]
    assert said.count("UserError: ") == 2 and said.count("frame 7;") >= 2  # both name the sample


def test_the_batch_must_divide(tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size: 12 is not a multiple of the 5"):
        check_batch(toy_config(tmp_path), World(0, 5, torch.device("cpu")))
