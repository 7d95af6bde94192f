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
    (tmp_path / "extra").mkdir()
    for name in (NPY_NAME, H5_NAME):
        (tmp_path / "extra" / name).touch()
        assert labels_path(tmp_path).name == name


@pytest.mark.parametrize("protocol, module", [
    (2, b"numpy.core."), (3, b"numpy.core."), (3, b"numpy._core."), (4, b"numpy._core."),
    (5, b"numpy._core."),
])  # fmt: skip
def test_pickles_of_every_protocol_and_numpy(tiny, tmp_path, protocol, module):
    root, labels = tiny
    tree = np.load(root / "extra" / NPY_NAME, allow_pickle=True)
    payload = pickle.dumps(tree, protocol).replace(b"numpy._core.", module)
    _same(read_labels(_write(tmp_path, payload)), labels, 1e-6)


def _write(folder, payload: bytes):
    """A .npy file of a pickle."""
    with open(folder / NPY_NAME, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(payload)
    return folder / NPY_NAME


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
    path = _write(tmp_path, pickle.dumps({"table": evil(marker)}, 4))
    with pytest.raises(UserError, match=f"{NPY_NAME}: refused: the pickle asks for") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_malicious_pickles_do_run_elsewhere(tmp_path):
    """The control: what the test above refuses would have had its effect."""
    marker = tmp_path / "pwned"
    pickle.loads(pickle.dumps(_Evil(eval, f"open({str(marker)!r}, 'w')")))
    assert marker.exists()


def test_damaged_npy(tiny, tmp_path):
    path = tmp_path / NPY_NAME
    whole = (tiny[0] / "extra" / NPY_NAME).read_bytes()
    for content, message in (
        (b"", "not a .npy file"),
        (b"PK\x03\x04 zip", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 1+1}  ", "not a .npy file"),
        (whole[: len(whole) // 2], "damaged labels file"),
        (np.zeros(3), "array of float64"),
        (np.array({"table": np.zeros(3)}, object), "expected the keys"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        with pytest.raises(UserError, match=message):
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
