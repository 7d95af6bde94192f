import io
import os
import pickle

import h5py
import numpy as np
import pytest
from h36m_fixture import make_tiny_h36m

from ptri.data.labels import (
    H5_NAME,
    NPY_NAME,
    Labels,
    check_camera,
    labels_path,
    read_labels,
    write_h5,
)
from ptri.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return root, make_tiny_h36m(root)


def _same(a: Labels, b: Labels, tolerance: float = 0.0) -> None:
    for name in Labels._fields:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, tuple):
            assert x == y, name
        else:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=name)
            assert x.dtype == y.dtype, name


def test_npy_round_trip(tiny):
    root, labels = tiny
    _same(read_labels(root / "extra" / NPY_NAME), labels, 1e-6)  # cameras are stored as float32


def test_npy_is_the_form_that_other_programs_read(tiny):
    tree = np.load(tiny[0] / "extra" / NPY_NAME, allow_pickle=True).item()
    assert set(tree) == {"subject_names", "camera_names", "action_names", "cameras", "table"}
    assert tree["cameras"].shape == (2, 4)
    assert tree["cameras"]["t"].shape == (2, 4, 3, 1)
    assert tree["table"].dtype["bbox_by_camera_tlbr"].shape == (4, 4)
    assert tree["table"]["keypoints"].shape[1:] == (17, 3)


def test_hdf5_round_trip_is_exact_and_mapped(tiny, tmp_path):
    write_h5(tmp_path / H5_NAME, tiny[1])
    read = read_labels(tmp_path / H5_NAME)
    _same(read, tiny[1])
    assert isinstance(read.joints, np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == [H5_NAME]  # no temporary file left


def test_hdf5_is_preferred(tmp_path):
    labels = make_tiny_h36m(tmp_path, subjects=("S1",), actions=("Walking-1",), num_frames=1)
    assert labels_path(tmp_path).name == NPY_NAME
    write_h5(tmp_path / "extra" / H5_NAME, labels)
    assert labels_path(tmp_path).name == H5_NAME


@pytest.mark.parametrize("protocol, module", [
    (2, b"numpy.core."), (3, b"numpy.core."), (3, b"numpy._core."), (4, b"numpy._core."),
    (5, b"numpy._core."),
])  # fmt: skip
def test_pickles_of_every_protocol_and_numpy(tiny, tmp_path, protocol, module):
    root, labels = tiny
    tree = np.load(root / "extra" / NPY_NAME, allow_pickle=True)
    payload = pickle.dumps(tree, protocol).replace(b"numpy._core.", module)
    path = tmp_path / NPY_NAME
    path.write_bytes(_header() + payload)
    _same(read_labels(path), labels, 1e-6)


def _header() -> bytes:
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


class _Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("evil", [
    lambda marker: _Evil(os.system, f"touch {marker}"),
    lambda marker: _Evil(eval, f"open({str(marker)!r}, 'w')"),
    lambda marker: _Evil(exec, f"open({str(marker)!r}, 'w')"),
    lambda marker: _Evil(np.load, str(marker)),
    lambda marker: _Evil(getattr, np.ndarray, "tofile"),
    lambda marker: _Evil(np.lib.format.open_memmap, str(marker), "w+", "f4", (3,)),
])  # fmt: skip
def test_malicious_pickle_is_refused_and_not_run(tmp_path, evil):
    marker = tmp_path / "pwned"
    path = tmp_path / NPY_NAME
    path.write_bytes(_header() + pickle.dumps({"table": evil(marker)}, 4))
    with pytest.raises(UserError, match=f"{NPY_NAME}: refused: the pickle asks for") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_malicious_pickles_do_run_elsewhere(tmp_path):
    """The control: what the test above refuses would have had its effect."""
    marker = tmp_path / "pwned"
    pickle.loads(pickle.dumps(_Evil(eval, f"open({str(marker)!r}, 'w')")))
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .npy file"),
        (b"PK\x03\x04 zip", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 1+1}  ", "not a .npy file"),
        (None, "damaged labels file"),
    ],
)
def test_damaged_npy(tiny, tmp_path, content, message):
    whole = (tiny[0] / "extra" / NPY_NAME).read_bytes()
    path = tmp_path / NPY_NAME
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=message):
        read_labels(path)


def test_other_npy_content(tmp_path):
    path = tmp_path / NPY_NAME
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="array of float64"):
        read_labels(path)
    boxed = np.empty((), object)
    boxed[()] = {"table": np.zeros(3)}
    np.save(path, boxed)
    with pytest.raises(UserError, match="expected the keys"):
        read_labels(path)


def test_damaged_hdf5(tiny, tmp_path):
    labels, path = tiny[1], tmp_path / H5_NAME

    def fails(words):
        with pytest.raises(UserError, match=words):
            read_labels(path)

    fails("no such labels file")
    path.write_bytes(b"not hdf5")
    fails("damaged or not a labels file")
    write_h5(path, labels)
    with h5py.File(path, "a") as file:
        del file["boxes"]
    fails("damaged or not a labels file")
    write_h5(path, labels._replace(joints=labels.joints[:, :16]))
    fails(r"joints has shape \(12, 16, 3\), expected \(12, 17, 3\)")
    write_h5(path, labels._replace(subject=labels.subject + 7))
    fails(r"subject index outside 0\.\.1")


@pytest.mark.parametrize(
    ("field", "position", "value", "message"),
    [
        ("K", (0, 0), np.nan, "K holds NaN"),
        ("t", (1,), np.inf, "t holds NaN or infinity"),
        ("K", (0, 0), -1100.0, "focal length"),
        ("K", (1, 0), 3.0, "expected .*fx, 0, cx"),
        ("R", (0, 0), 2.0, "not a rotation"),
        ("R", slice(None), np.diag([1.0, 1.0, -1.0]), "not a rotation"),
    ],
)
def test_absurd_cameras(tiny, field, position, value, message):
    labels = tiny[1]
    check_camera(labels, 1, 2, "labels.npy")
    changed = getattr(labels, field).copy()
    changed[1, 2][position] = value
    labels = labels._replace(**{field: changed})
    with pytest.raises(UserError, match=message) as caught:
        check_camera(labels, 1, 2, "labels.npy")
    assert "labels.npy: camera 58860488 of S9" in str(caught.value)
