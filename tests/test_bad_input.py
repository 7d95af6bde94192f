"""Every mistake a user makes: one line on stderr that names it, status 2, nothing overwritten.

Here through the scripts, once for each kind; `test_train_scripts` has those of training.
"""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from h36m_fixture import make_tiny_h36m
from recording_fixture import edit_cameras, make_recording, run_script

from ptri import checkpoint, config
from ptri.models.pose_model import PoseModel

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["model.lifter_width=16", "model.lifter_blocks=1", "model.fusion_width=8"]


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a script that has to exit with 2 and one line, which is returned."""
    monkeypatch.chdir(tmp_path)

    def refused(script, settings, *arguments):
        path = ROOT / "configs" / settings
        status, _, lines = run_script(monkeypatch, capsys, script, path, *arguments)
        errors = [line for line in lines if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1, lines
        assert not any("Traceback" in line for line in lines)
        return errors[0]

    return refused


# --- data sets -------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    make_tiny_h36m(tmp_path / "h36m")
    return tmp_path / "h36m"


def labels_file(root):
    return next((root / "extra").glob("*.npy"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def malicious_labels(root):
    path = labels_file(root)
    with path.open("wb") as file:
        header = {"shape": (), "fortran_order": False, "descr": "|O"}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(np.array(Evil(), dtype=object), file)


def truncated_images(root):
    for image in (root / "processed").rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: labels_file(root).unlink(), "labels"),
        (malicious_labels, ".npy"),
        (truncated_images, ".jpg"),
    ],
)
def test_damaged_data_set(refused, tiny, tmp_path, damage, message):
    damage(tiny)
    quick = ["data.workers=0", "data.image_size=64", "train.epochs=1", "train.steps_per_epoch=1"]
    error = refused("train2d.py", "demo_2d.yaml", f"data.root={tiny}", "train.batch_size=2", *quick)
    assert message in error and str(tiny) in error
    assert not (tmp_path / "owned").exists()


def test_one_view_of_a_data_set(refused, tiny):
    arguments = (f"data.root={tiny}", "data.views=[0]", *SMALL)
    assert "view" in refused("infer3d.py", "h36m_infer.yaml", *arguments)


# --- recordings ------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path):
    make_recording(tmp_path / "recording", num_frames=2)
    return tmp_path / "recording"


def weights(path, *overrides):
    model = PoseModel(config.load(None, ["run.name=x", *SMALL, *overrides]), with_images=False)
    checkpoint.save_weights(path, model.state_dict(), {"command": "test"})
    return path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.root=no/such/place", "data.root: no/such/place is not a folder"),
        ("recording.views=[0]", "at least two cameras"),
        ("recording.vews=[0,1]", "did you mean 'recording.views'"),
        ("init.checkpoint_3d=nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("init.checkpoint_3d=null", "init.checkpoint_3d: not set"),
        ("data.kind=generated", "data.kind: generated"),
    ],
)
def test_wrong_setting(refused, recording, tmp_path, setting, message):
    arguments = (f"data.root={recording}", setting, *SMALL)
    assert message in refused("infer3d.py", "recording.yaml", *arguments)
    assert not (tmp_path / "outputs").exists()


def test_bad_weights_and_cameras(refused, recording, tmp_path):
    def error(path):
        arguments = (f"data.root={recording}", f"init.checkpoint_3d={path}", *SMALL)
        return refused("infer3d.py", "recording.yaml", *arguments)

    other = weights(tmp_path / "other.pt", "model.fusion_width=12")
    assert str(other) in error(other) and "model." in error(other)
    path = weights(tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"x" * 100
    path.write_bytes(content)
    assert str(path) in error(path)
    edit_cameras(recording, lambda cameras: cameras[1]["K"][0].__setitem__(0, float("nan")))
    assert "calibration.json: camera 'front': K holds NaN" in error(path)


def test_an_existing_output_folder_is_kept(refused, recording, tmp_path):
    folder = tmp_path / "outputs/recording"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("precious")
    arguments = (f"data.root={recording}", *SMALL)
    error = refused("infer3d.py", "recording.yaml", *arguments)
    assert "outputs/recording" in error and "--overwrite" in error
    # Not even --overwrite removes anything before the input has proved good.
    refused("infer3d.py", "recording.yaml", *arguments, "data.root=nowhere", "--overwrite")
    assert (folder / "metrics.json").read_text() == "precious"
