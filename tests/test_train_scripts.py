"""train2d.py and train3d.py as a user runs them: killed, resumed, on two processes, bad input."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recording_fixture import run_script
from toy_task import assert_same_run, load_last, read_lines

ROOT = Path(__file__).resolve().parent.parent
SHORT = [
    "train.epochs=2", "train.steps_per_epoch=5", "train.batch_size=4", "train.log_every_steps=1",
    "train.save_every_steps=2", "evaluate.pictures=1", "run.device=cpu", "run.threads=1",
    "train.amp=off",  # bf16, where the CPU has it, differs between two processes and one
]  # fmt: skip
# The lifter, then the fusion. From the shipped weights: where an untrained lifter sends the
# adjustment depends on the last digit.
GENERATED = [
    "train.lifter_epochs=1", "train.lifter_batch=2", "train.max_frames=2",
    "init.checkpoint_3d=checkpoints/ptri_3d.pt",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RUNS = {
    "train2d": ("train2d.py", "configs/demo_2d.yaml"),
    "train3d": ("train3d.py", "configs/demo_3d.yaml"),
    "generated": ("train3d.py", "configs/generated_keypoints.yaml"),
}


def command(run, out, *arguments, launcher=()):
    script, settings = RUNS[run]
    for needed in (ROOT / settings, ROOT / "data/demo"):
        if not needed.exists():
            pytest.skip(f"{needed.relative_to(ROOT)} is not there")
    own = GENERATED if run == "generated" else []
    return [sys.executable, *launcher, script, settings, *SHORT, *own, f"run.out={out}", *arguments]


def start(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        command(*arguments, **options), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(*arguments, **options):
    process = start(*arguments, **options)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module", params=list(RUNS))
def uninterrupted(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    finish(request.param, out)
    return request.param, out


def wait_for_lines(process, out, count):
    deadline = time.monotonic() + 300
    while not any(out.glob("*/metrics.jsonl")) or len(read_lines(out, "train")) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(uninterrupted, tmp_path):
    run, whole = uninterrupted
    process = start(run, tmp_path)
    wait_for_lines(process, tmp_path, 7)  # in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 5 <= load_last(tmp_path)["step"] < 10
    finish(run, tmp_path, "--resume")
    assert load_last(whole)["step"] == 10
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_the_run(tmp_path, number):
    """As a terminal sends Ctrl-C, and torchrun SIGTERM: the loader processes get it too."""
    process = start("train2d", tmp_path, "train.save_every_steps=0", "data.workers=1")
    wait_for_lines(process, tmp_path, 2)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and f"stopped by {signal.Signals(number).name}" in said
    assert load_last(tmp_path)["step"] == len(read_lines(tmp_path, "train"))


@pytest.mark.slow
def test_two_processes_follow_one(uninterrupted, tmp_path):
    """Float tolerance; in 2D training BatchNorm sees half a batch, so only the course agrees."""
    run, whole = uninterrupted
    finish(run, tmp_path, launcher=TORCHRUN)
    ours, theirs = read_lines(whole, "train"), read_lines(tmp_path, "train")
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    for one, two in zip(ours, theirs):
        tolerance = 0.2 if run == "train2d" else 1e-3  # measured in 2D: 0.05
        assert two["loss"] == pytest.approx(one["loss"], rel=tolerance), one["step"]


@pytest.mark.parametrize("run, arguments, named", [
    ("train2d", ["train.epocs=3"], "train.epochs"),
    ("train2d", ["init.checkpoint_2d=README.md"], "README.md"),
    ("train2d", ["run.name=mine"], "the run folder exists"),
    ("train3d", ["--overwrite", "--resume"], "exclude"),
    ("train3d", ["run.name=mine", "--overwrite", "data.root=nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_input_is_one_line(run, arguments, named, tmp_path, monkeypatch, capsys):
    """And nothing is changed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/last.pt").write_text("dear to me")
    monkeypatch.chdir(ROOT)
    given = *RUNS[run], "run.device=cpu", f"run.out={tmp_path}", *arguments
    status, _, (line,) = run_script(monkeypatch, capsys, *given)
    assert status == 2 and line.startswith("error: ") and named in line
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "last.pt"]
    assert (tmp_path / "mine/last.pt").read_text() == "dear to me"


@pytest.mark.parametrize("script, settings, arguments, named", [
    # Named before the ImageNet weights that the file asks for are downloaded.
    ("train2d.py", "configs/h36m_2d.yaml", ["data.root=nowhere"], "data.root: nowhere"),
    ("train2d.py", "configs/h36m_2d.yaml", ["data.image_size=100"], "data.image_size: 100 is out"),
    ("train2d.py", "configs/demo_2d.yaml", ["data.kind=generated"], "data.kind: generated"),
    ("train3d.py", "configs/demo_3d.yaml", ["data.mix=[{kind: coco}]"], "data.mix: "),
    # Found out in the first step.
    ("train3d.py", "configs/generated_keypoints.yaml", ["generated.families=[wall]"],
     "generated.held_out_families: wall"),
])  # fmt: skip
def test_a_refused_setting_leaves_no_folder(
    script, settings, arguments, named, tmp_path, monkeypatch, capsys
):
    """Neither the run's nor the one above it."""
    monkeypatch.chdir(ROOT)
    given = script, settings, "run.device=cpu", f"run.out={tmp_path / 'runs'}", *arguments
    status, _, lines = run_script(monkeypatch, capsys, *given)
    assert status == 2 and named in lines[-1] and "pretrained" not in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_takes_nothing_from_an_older_one(tmp_path, monkeypatch, capsys):
    """Also where the first step finds out, and --overwrite was given."""
    folder = tmp_path / "generated_keypoints"
    folder.mkdir()
    (folder / "last.pt").write_text("dear to me")
    monkeypatch.chdir(ROOT)
    given = ["train3d.py", "configs/generated_keypoints.yaml", "run.device=cpu", "--overwrite"]
    given += [f"run.out={tmp_path}", "generated.families=[wall]"]
    status, _, _ = run_script(monkeypatch, capsys, *given)
    assert status == 2 and (folder / "last.pt").read_text() == "dear to me"
