"""Run folders and checkpoints: what is protected, what is written; threads and devices."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from toy_task import read_lines, toy_config

from ptri import checkpoint, config
from ptri.errors import UserError
from ptri.evaluation.outputs import run_folder
from ptri.system import choose_device, one_thread
from ptri.training.runlog import RunLog, check_folder


def test_existing_folder(tmp_path):
    folder = tmp_path / "toy"
    check_folder(folder, resume=False, overwrite=False)
    folder.mkdir()
    check_folder(folder, resume=False, overwrite=False)  # empty: nothing to lose
    (folder / "last.pt").touch()
    check_folder(folder, resume=True, overwrite=False)
    check_folder(folder, resume=False, overwrite=True)
    for place, resume, overwrite, message in (
        (folder, False, False, r"exists.*--resume.*--overwrite"),
        (folder, True, True, "exclude"),
        (tmp_path / "other", True, False, "nothing to resume"),
        (folder / "last.pt", False, False, "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            check_folder(place, resume, overwrite)


GOOD = config.load(None, ["run.name=sweep/lr-1e.3"])


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/tmp/a", "a/../b", "a b", "-x"])
def test_bad_run_names(name):
    with pytest.raises(UserError, match=r"run\.name"):
        run_folder(config.replace(GOOD, run__name=name))
    assert run_folder(GOOD).parts[-2:] == ("sweep", "lr-1e.3")


def opened(folder, settings, lines=None, step=0):
    log = RunLog(folder, settings)
    log.lines, log.step = lines, step
    log.open()
    return log


def test_what_is_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = toy_config(tmp_path)
    log = RunLog(tmp_path / "toy", settings)
    logging.getLogger("ptri.data").warning("an early line")
    assert not (tmp_path / "toy").exists()
    log.open()
    log.open()  # once is enough
    log.scalars("train", 0, 3, {"loss": 0.5})
    log.scalars("val", 0, 3, {"error": float("nan")})
    log.pictures(3, {"grey": np.zeros((4, 4, 3), np.uint8)})
    logging.getLogger("ptri.training.engine").info("a line")
    log.close()
    logging.getLogger("ptri.training.engine").info("after the end")
    assert config.load(tmp_path / "toy/config.yaml") == settings
    assert read_lines(tmp_path) == [
        {"split": "train", "epoch": 0, "step": 3, "loss": 0.5},
        {"split": "val", "epoch": 0, "step": 3, "error": None},
    ]
    text = (tmp_path / "toy/log.txt").read_text()
    assert "an early line" in text and "a line" in text and "after the end" not in text
    events = accumulator.EventAccumulator(str(tmp_path / "toy/tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.5)]
    assert [e.step for e in events.Images("grey")] == [3]


def test_resuming_cuts_the_lines_after_the_checkpoint(tmp_path):
    log = opened(tmp_path / "toy", toy_config(tmp_path))
    for step in range(1, 6):
        log.scalars("train", 0, step, {"loss": step})
    log.close()
    with open(tmp_path / "toy/metrics.jsonl", "a") as file:
        file.write('{"split": "train", "ep')  # killed in the middle of a line
    log = opened(tmp_path / "toy", toy_config(tmp_path), lines=3, step=3)
    log.scalars("train", 0, 4, {"loss": 40.0})
    log.close()
    assert [line["loss"] for line in read_lines(tmp_path)] == [1, 2, 3, 40]
    assert log.lines == 4


def test_a_new_run_removes_only_its_own_files(tmp_path):
    folder = tmp_path / "toy"
    opened(folder, toy_config(tmp_path)).close()
    (folder / "notes.md").write_text("mine")
    (folder / "best.pt").touch()
    opened(folder, toy_config(tmp_path)).close()
    assert (folder / "notes.md").read_text() == "mine" and not (folder / "best.pt").exists()


def test_one_thread_is_given_back_by_python_threads_that_overlap():
    """Each used to leave behind what the other had set: one thread, for every later thread."""
    before = torch.get_num_threads()
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with one_thread():
            entered.set()
            leave.wait(10)

    def overlap():
        with one_thread():
            with one_thread():
                pass
            leave.set()
            first.join()
            return torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        first = threading.Thread(target=stay)
        first.start()
        entered.wait(10)
        # Also after the other one has left, and from within.
        assert ThreadPoolExecutor(1).submit(overlap).result() == 1
        later = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        assert later == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_none_or_not_there():
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=rf"run\.device: '{name}'"):
            choose_device(name)


def small_model(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def full_state(model):
    return {
        "config": {"run": {"name": "a"}}, "model": model.state_dict(), "ema": model.state_dict(),
        "optimizer": {}, "scheduler": {}, "epoch": 2, "step": 9, "best": 0.5,
    }  # fmt: skip


def refused(message, action, *args):
    with pytest.raises(UserError, match=message) as caught:
        action(*args)
    assert "\n" not in str(caught.value)


def test_round_trip(tmp_path):
    model = small_model()
    checkpoint.save(tmp_path / "last.pt", full_state(model))
    state = checkpoint.load(tmp_path / "last.pt")
    assert (state["epoch"], state["step"], state["best"]) == (2, 9, 0.5)
    torch.testing.assert_close(state["model"], dict(model.state_dict()), rtol=0, atol=0)
    weights, meta = checkpoint.load_weights(tmp_path / "last.pt")
    assert weights.keys() == model.state_dict().keys() and meta["step"] == 9


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, full_state(small_model()))
    before = path.read_bytes()

    def torn_save(content, file):
        file.write(b"half of a ")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn_save)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, full_state(small_model()))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_corrupt_missing_and_foreign_files(tmp_path):
    path, model = tmp_path / "last.pt", small_model()
    checkpoint.save(path, full_state(model))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(model[0].weight.detach().numpy().tobytes())] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(range(256)) * 9, b"", flipped):
        path.write_bytes(damaged)
        refused(r"last\.pt.*corrupt", checkpoint.load, path)
    path.unlink()
    refused("no such", checkpoint.load, path)
    torch.save(model.state_dict(), tmp_path / "foreign.pt")
    refused(r"foreign\.pt", checkpoint.load_weights, tmp_path / "foreign.pt")


class Malicious:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ptri_was_here').touch()",))


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": checkpoint.CHECKPOINT, "model": Malicious()}, tmp_path / "evil.pt")
    refused(r"evil\.pt", checkpoint.load, tmp_path / "evil.pt")
    assert not (tmp_path / "ptri_was_here").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the control: it would have
    assert (tmp_path / "ptri_was_here").exists()


def test_another_architecture(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save_weights(path, small_model(4).state_dict(), {})
    deeper = nn.Sequential(*small_model(4), nn.Linear(2, 2))
    for model, text in (
        (small_model(5), r"(?=.*a\.pt).*another architecture.*size mismatch for 0\.weight"),
        (deeper, r'Missing key\(s\) in state_dict: "3\.weight", "3\.bias"'),
        (small_model(4)[:2], "Unexpected key"),
    ):
        refused(text, checkpoint.initialise, model, path)
    meta = {"model": {"plain_convolutions": False, "flip_test": True}}
    checkpoint.save_weights(path, small_model(4).state_dict(), meta)
    text = r"the settings the file was made with: model\.plain_convolutions=false$"
    refused(text, checkpoint.initialise, small_model(5), path)


def test_shipped_weights(tmp_path):
    path, model = tmp_path / "a.pt", small_model(64)
    meta = {"command": "train2d.py configs/a.yaml", "seed": 3, "metrics": {"x2d/l2": 4.5}}
    checkpoint.save_weights(path, model.state_dict(), meta)
    other = small_model(64)
    nn.init.zeros_(other[0].weight)
    assert checkpoint.initialise(other, path) == meta
    assert torch.equal(other[0].weight, model[0].weight.half().float())
    assert torch.equal(other[0].bias, model[0].bias)  # vectors keep their precision
    assert other[0].weight.dtype == torch.float32
    refused("holds ptri-weights, expected ptri-checkpoint", checkpoint.load, path)


def test_weights_too_large_for_fp16_are_refused(tmp_path):
    model = small_model()
    nn.init.constant_(model[0].weight, 1e6)
    refused(r"0\.weight", checkpoint.save_weights, tmp_path / "a", model.state_dict(), {})
    assert not (tmp_path / "a").exists()


def test_a_part_of_a_model(tmp_path):
    whole = nn.ModuleDict({"detector": small_model(), "lifter": nn.Linear(2, 2)})
    checkpoint.save_weights(tmp_path / "a.pt", whole.state_dict(), {})
    part = small_model()
    nn.init.zeros_(part[2].weight)
    checkpoint.initialise(part, tmp_path / "a.pt", prefix="detector.")
    assert part[2].weight.abs().sum() > 0
    refused("Missing", checkpoint.initialise, part, tmp_path / "a.pt", "detectr.")
