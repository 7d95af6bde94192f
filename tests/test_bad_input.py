"""Every mistake a user makes: one line on stderr that names it, status 2, nothing overwritten.

Here through the scripts, once for each kind: `test_train_scripts` has those of training, and
`test_labels`, `test_h36m`, `test_keypoint_files`, `test_videos`, `test_checkpoint` have what can be
wrong in a file.
"""

from pathlib import Path

import pytest
from h36m_fixture import make_tiny_h36m
from recording_fixture import make_recording, run_script

ROOT = Path(__file__).resolve().parent.parent


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


def test_data_sets(refused, tmp_path):
    make_tiny_h36m(tmp_path)
    root = f"data.root={tmp_path}"
    assert "view" in refused("infer3d.py", "h36m_infer.yaml", root, "data.views=[0]")
    next((tmp_path / "extra").glob("*.npy")).unlink()
    for script, settings in (("infer3d.py", "h36m_infer.yaml"), ("train2d.py", "demo_2d.yaml")):
        error = refused(script, settings, root)
        assert "labels are missing" in error and str(tmp_path) in error


@pytest.fixture
def recording(tmp_path):
    make_recording(tmp_path / "recording", num_frames=2)
    return tmp_path / "recording"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recording.vews=[0,1]", "did you mean 'recording.views'"),
        ("init.checkpoint_3d=nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("data.kind=generated", "data.kind: generated"),
    ],
)
def test_wrong_setting(refused, recording, tmp_path, setting, message):
    arguments = (f"data.root={recording}", setting)
    assert message in refused("infer3d.py", "recording.yaml", *arguments)
    assert not (tmp_path / "outputs").exists()


def test_an_existing_output_folder_is_kept(refused, recording, tmp_path):
    folder = tmp_path / "outputs/recording"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("precious")
    root = f"data.root={recording}"
    error = refused("infer3d.py", "recording.yaml", root)
    assert "outputs/recording" in error and "--overwrite" in error
    # Not even --overwrite removes anything before the input has proved good.
    refused("infer3d.py", "recording.yaml", root, "data.root=nowhere", "--overwrite")
    assert (folder / "metrics.json").read_text() == "precious"
