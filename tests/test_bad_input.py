"""Every mistake a user makes: one line on stderr that names it, status 2, nothing overwritten."""

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from h36m_fixture import make_tiny_h36m
from recording_fixture import make_recording

from ptri import checkpoint, config
from ptri.models.pose_model import PoseModel

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["model.lifter_width=16", "model.lifter_blocks=1", "model.fusion_width=8"]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        status = script(name).main()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        return status, errors

    return run


def fails(run, name, *arguments, says):
    """The script exits with 2 and one line that says all of the given words."""
    status, errors = run(name, *arguments)
    assert status == 2, errors
    lines = [line for line in errors if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert not any("Traceback" in line for line in errors)
    for word in says:
        assert str(word) in lines[0], lines[0]


@pytest.fixture
def tiny(tmp_path):
    make_tiny_h36m(tmp_path / "h36m")
    return tmp_path / "h36m"


def labels_file(root):
    return next((root / "extra").glob("*.npy"))


def train(tiny, *more):
    return [
        ROOT / "configs" / "demo_2d.yaml", f"data.root={tiny}", "data.workers=0",
        "data.image_size=64", "train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=2",
        *more,
    ]  # fmt: skip


def test_misspelt_key(run, tiny):
    fails(run, "train2d", *train(tiny, "train.epoch=3"), says=["train.epoch", "train.epochs"])


def test_wrong_root(run, tiny):
    fails(run, "train2d", *train(tiny, "data.root=no/such"), says=["data.root", "no/such"])


def test_missing_labels(run, tiny):
    labels_file(tiny).unlink()
    fails(run, "train2d", *train(tiny), says=["labels", str(tiny)])


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_malicious_labels(run, tiny, tmp_path):
    path = labels_file(tiny)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (), "fortran_order": False, "descr": "|O"}
        )
        pickle.dump(np.array(Evil(), dtype=object), file)
    fails(run, "train2d", *train(tiny), says=[path.name])
    assert not (tmp_path / "owned").exists()


def test_truncated_image(run, tiny):
    for image in (tiny / "processed").rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    fails(run, "train2d", *train(tiny), says=[".jpg"])


def test_existing_run_folder(run, tiny, tmp_path):
    folder = tmp_path / "runs" / "demo_2d"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"precious")
    fails(run, "train2d", *train(tiny), says=["runs/demo_2d", "--resume", "--overwrite"])
    assert (folder / "last.pt").read_bytes() == b"precious"


def weights(path, *overrides):
    model = PoseModel(config.load(None, ["run.name=x", *SMALL, *overrides]), with_images=False)
    checkpoint.save_weights(path, model.state_dict(), {"command": "test"})
    return path


@pytest.fixture
def recording(tmp_path):
    root = tmp_path / "recording"
    make_recording(root)
    return root


def infer(recording, *more):
    return [ROOT / "configs" / "recording.yaml", f"data.root={recording}", *SMALL, *more]


def test_another_architecture(run, recording, tmp_path):
    path = weights(tmp_path / "other.pt", "model.fusion_width=12")
    fails(run, "infer3d", *infer(recording, f"init.checkpoint_3d={path}"), says=[path, "model."])


def test_corrupt_checkpoint(run, recording, tmp_path):
    path = weights(tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"x" * 100
    path.write_bytes(content)
    fails(run, "infer3d", *infer(recording, f"init.checkpoint_3d={path}"), says=[path])


def test_nan_intrinsics(run, recording, tmp_path):
    path = weights(tmp_path / "weights.pt")
    calibration = recording / "calibration.json"
    content = calibration.read_text()
    tree = json.loads(content)
    cameras = tree.get("cameras", tree)
    first = cameras[0] if isinstance(cameras, list) else next(iter(cameras.values()))
    first["K"][0][0] = float("nan")
    calibration.write_text(json.dumps(tree))
    fails(
        run, "infer3d", *infer(recording, f"init.checkpoint_3d={path}"),
        says=["calibration.json", "K"],
    )  # fmt: skip


def test_one_view_only(run, recording, tmp_path):
    path = weights(tmp_path / "weights.pt")
    fails(
        run, "infer3d", *infer(recording, f"init.checkpoint_3d={path}", "recording.views=[0]"),
        says=["view"],
    )  # fmt: skip


def test_one_view_only_of_a_data_set(run, tiny):
    arguments = [
        ROOT / "configs" / "h36m_infer.yaml", f"data.root={tiny}", "data.views=[0]", *SMALL,
    ]  # fmt: skip
    fails(run, "infer3d", *arguments, says=["view"])


def test_existing_output_folder(run, recording, tmp_path):
    path = weights(tmp_path / "weights.pt")
    folder = tmp_path / "outputs" / "recording"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("precious")
    fails(
        run, "infer3d", *infer(recording, f"init.checkpoint_3d={path}"),
        says=["outputs/recording", "--overwrite"],
    )  # fmt: skip
    assert (folder / "metrics.json").read_text() == "precious"
