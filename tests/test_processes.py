"""Several processes (torchrun) evaluate as one does, and end together where one fails."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from ptri.errors import UserError, exit_status
from ptri.system import gather, joined, on_first, placed, together

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "ptri.system"])


def member(rank, port, folder, failing):
    """What each of three processes does; its exit status and what it said go to the folder."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 2)

    def work(world):
        if rank in failing:
            raise UserError(f"process {rank}: a bad file")
        while failing and not world.failing:  # for ever, if nobody told
            pass
        return rank

    def action():
        with joined() as world:
            assert placed(world, "cpu").device.type == "cpu"
            assert (world.rank, world.size) == (rank, 3) and not world.failing
            on_first(world, lambda: (folder / "prepared").mkdir())
            assert (folder / "prepared").is_dir()  # the others have waited
            own = together(world, lambda: work(world))
            assert gather(world, own) == [0, 1, 2]

    sys.exit(exit_status(action))


@pytest.mark.parametrize("failing", [(), (2,), (0, 1)])
def test_all_end_with_one_line(tmp_path, failing):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [
        PROCESSES.Process(target=member, args=(rank, port, tmp_path, failing)) for rank in range(3)
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(30)
        process.kill()
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert [process.exitcode for process in members] == [2 if failing else 0] * 3, lines
    assert lines == [f"error: process {rank}: a bad file" for rank in failing[:1]]


def infer(*arguments, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher * (processes > 1), "infer3d.py", "configs/demo.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [*command, "run.device=cpu", "run.threads=1", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )


def rows_of(path):
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, value: found.update({name: value}))
        data = {name: value[:] for name, value in found.items() if isinstance(value, h5py.Dataset)}
        return {k: v.tolist() if v.dtype == object else v.tobytes() for k, v in data.items()}


@pytest.mark.slow
def test_shared_scenes_give_the_numbers_of_one_process(tmp_path):
    """To the bit, pictures and order of the rows included; three processes share four scenes."""
    arguments = "data.test_every=5", "evaluate.pictures=2"
    said, figures = [], []
    for processes in (1, 3):
        out = tmp_path / str(processes)
        done = infer(f"evaluate.out={out}", *arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        # But for the folder's name and the times.
        said.append([line for line in done.stdout.splitlines() if str(tmp_path) not in line])
        said[-1] = [line for line in said[-1] if not line.startswith("time per frame")]
        figures.append(json.loads((out / "demo/metrics.json").read_text()))
    assert said[0] == said[1]
    for values in figures:
        for name in [name for name in values if "seconds" in name]:
            del values[name]
    assert figures[0] == figures[1]
    one, three = (tmp_path / processes / "demo" for processes in "13")
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert names == sorted(path.relative_to(three) for path in three.rglob("*"))
    assert rows_of(one / "predictions.h5") == rows_of(three / "predictions.h5")
    for name in names:
        if name.suffix == ".png":
            assert (one / name).read_bytes() == (three / name).read_bytes(), name


@pytest.mark.slow
def test_a_bad_image_of_one_process_is_one_line(tmp_path):
    root = tmp_path / "data"
    shutil.copytree(ROOT / "data/demo", root)
    bad = next(root.glob("processed/S11/*/*/*/*.jpg"))
    bad.write_bytes(b"no image")
    done = infer(f"data.root={root}", f"evaluate.out={tmp_path}", processes=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(errors) == 1 and bad.name in errors[0]


def test_torch_is_left_as_it_was():
    with joined() as world:  # alone
        assert world.size == 1 and world.first and not torch.distributed.is_initialized()
        with pytest.raises(UserError, match="mine"):
            together(world, lambda: (_ for _ in ()).throw(UserError("mine")))
