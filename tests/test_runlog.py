"""Run folders: what is protected, what is written; threads and devices."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toy_task import read_lines, toy_config

from ptri import config
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


def test_what_is_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = toy_config(tmp_path)
    log = RunLog(tmp_path / "toy", settings)
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
    assert "a line" in text and "after the end" not in text
    events = accumulator.EventAccumulator(str(tmp_path / "toy/tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.5)]
    assert [e.step for e in events.Images("grey")] == [3]


def test_resuming_cuts_the_lines_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path / "toy", toy_config(tmp_path))
    for step in range(1, 6):
        log.scalars("train", 0, step, {"loss": step})
    log.close()
    with open(tmp_path / "toy/metrics.jsonl", "a") as file:
        file.write('{"split": "train", "ep')  # killed in the middle of a line
    log = RunLog(tmp_path / "toy", toy_config(tmp_path), resume_lines=3, step=3)
    log.scalars("train", 0, 4, {"loss": 40.0})
    log.close()
    assert [line["loss"] for line in read_lines(tmp_path)] == [1, 2, 3, 40]
    assert log.lines == 4


def test_a_new_run_removes_only_its_own_files(tmp_path):
    folder = tmp_path / "toy"
    RunLog(folder, toy_config(tmp_path)).close()
    (folder / "notes.md").write_text("mine")
    (folder / "best.pt").touch()
    RunLog(folder, toy_config(tmp_path)).close()
    assert (folder / "notes.md").read_text() == "mine" and not (folder / "best.pt").exists()


def in_new_thread(action):
    """What the action returns in a Python thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


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
        assert in_new_thread(overlap) == 1  # also after the other one has left, and from within
        assert in_new_thread(torch.get_num_threads) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_none_or_not_there():
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=rf"run\.device: '{name}'"):
            choose_device(name)
