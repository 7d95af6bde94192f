"""Human3.6M labels: the pickled .npy table of learnable-triangulation, and the HDF5 form of it.

The .npy file is a pickled dictionary. Unpickling may run any code, so the file is read by an
unpickler that knows numpy arrays, dtypes and scalars and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np

from ptri.checkpoint import replacing
from ptri.errors import UserError

NPY_NAME = "human36m-multiview-labels-GTbboxes.npy"
H5_NAME = "human36m-multiview-labels-GTbboxes.h5"
NUM_JOINTS = 17


class Labels(NamedTuple):
    """All labels of a data set: S subjects, C cameras, A actions (scenes), N frames."""

    subject_names: tuple[str, ...]  # S, such as "S9"
    camera_names: tuple[str, ...]  # C, such as "54138969"
    action_names: tuple[str, ...]  # A, such as "Greeting-2"
    K: np.ndarray  # (S, C, 3, 3) float64, px
    dist: np.ndarray  # (S, C, 5) float64, OpenCV's k1 k2 p1 p2 k3
    R: np.ndarray  # (S, C, 3, 3) float64, x_cam = R x_world + t
    t: np.ndarray  # (S, C, 3) float64, mm
    subject: np.ndarray  # (N,) int16, index into subject_names
    action: np.ndarray  # (N,) int16, index into action_names
    frame: np.ndarray  # (N,) int32, 0-based; the image is img_%06d.jpg of frame + 1
    joints: np.ndarray  # (N, 17, 3) float32, mm, world
    boxes: np.ndarray  # (N, C, 4) int16, px: top, left, bottom, right; all 0 = view missing


_NAMES = ("subject_names", "camera_names", "action_names")
_CAMERA = ("K", "dist", "R", "t")
_ARRAYS = {  # the type, and the shape: S subjects, C cameras, N frames
    "K": ("f8", "S", "C", 3, 3),
    "dist": ("f8", "S", "C", 5),
    "R": ("f8", "S", "C", 3, 3),
    "t": ("f8", "S", "C", 3),
    "subject": ("i2", "N"),
    "action": ("i2", "N"),
    "frame": ("i4", "N"),
    "joints": ("f4", "N", NUM_JOINTS, 3),
    "boxes": ("i2", "N", "C", 4),
}
# The table of the .npy form: its names and types of our arrays by frame.
_COLUMNS = {
    "subject": ("subject_idx", "i1"),
    "action": ("action_idx", "i1"),
    "frame": ("frame_idx", "i2"),
    "joints": ("keypoints", "f4"),
    "boxes": ("bbox_by_camera_tlbr", "i2"),
}


def labels_path(root: str | Path) -> Path:
    """The labels file of a data set: the HDF5 form where there is one, else the .npy.

    Raises:
        UserError: the folder or both files are missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder; expected the one with extra/")
    for name in (H5_NAME, NPY_NAME):
        if (root / "extra" / name).is_file():
            return root / "extra" / name
    raise UserError(
        f"{root / 'extra' / NPY_NAME}: labels are missing; put the learnable-triangulation file "
        f"there, or make them with: python scripts/prepare_h36m.py build {root}"
    )


def read_labels(path: str | Path) -> Labels:
    """Reads a labels file, .npy or .h5.

    Raises:
        UserError: unreadable, incomplete, or a pickle that wants more than numpy types.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such labels file")
    return _read_h5(path) if path.suffix in (".h5", ".hdf5") else _read_npy(path)


# --- the .npy form ---------------------------------------------------------------------------


def _read_npy(path: Path) -> Labels:
    with open(path, "rb") as file:
        tree = _load_dictionary(file, path)
    try:
        names = {name: tuple(map(str, tree[name])) for name in _NAMES}
        arrays = {name: np.asarray(tree["cameras"][name], "f8") for name in _CAMERA}
        arrays["t"] = arrays["t"].reshape(*tree["cameras"].shape, 3)
        for name, (column, _) in _COLUMNS.items():
            arrays[name] = np.asarray(tree["table"][column], _ARRAYS[name][0])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: not a Human3.6M labels file: {_one_line(error)}; expected the keys "
            "subject_names, camera_names, action_names, cameras and table"
        ) from None
    return _check_shapes(Labels(**names, **arrays), path)


def _load_dictionary(file: BinaryIO, path: Path) -> dict:
    """Reads a .npy file holding one pickled dictionary, without running anything in it."""
    form = np.lib.format
    readers = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    try:
        shape, _, dtype = readers[form.read_magic(file)](file)
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a .npy file: {_one_line(error)}") from None
    if not dtype.hasobject or shape != ():
        raise UserError(
            f"{path}: not a Human3.6M labels file: holds an array of {dtype} with shape {shape}, "
            "expected one dictionary"
        )
    try:
        value = _NumpyUnpickler(file).load()
    except _RefusedError as error:
        raise UserError(
            f"{path}: refused: the pickle asks for {error}, and labels hold numpy data only; "
            "do not open this file with other programs"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: damaged labels file: {_one_line(error)}") from None
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a pickled dictionary, found {type(value).__name__}")
    return value


class _RefusedError(Exception):
    """A global that the labels file must not use."""


class _NumpyUnpickler(pickle.Unpickler):
    """Admits numpy arrays, dtypes and scalars (module names of numpy 1 and 2), nothing else."""

    def find_class(self, module: str, name: str):
        key = module.replace("numpy._core", "numpy.core"), name
        if key not in _numpy_types():
            raise _RefusedError(f"{module}.{name}")
        return _numpy_types()[key]

    def persistent_load(self, pid):
        raise _RefusedError(f"the external object {str(pid)[:40]!r}")


def _numpy_types() -> dict[tuple[str, str], Callable]:
    """The callables that a pickle of numpy data uses, made anew so that it cannot alter them."""

    def reconstruct(subtype, shape, dtype):
        if subtype is not np.ndarray or tuple(shape) not in ((0,), ()):
            raise _RefusedError(f"an array of type {subtype!r} and shape {shape!r}")
        return np.ndarray(tuple(shape), dtype)

    def scalar(dtype, data):
        if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
            raise _RefusedError(f"a scalar of {dtype!r}")
        return np.frombuffer(data, dtype, count=1)[0]

    def from_buffer(buffer, dtype, shape, order):
        return np.frombuffer(buffer, dtype).reshape(shape, order=order)

    def encode(text, encoding="latin1"):  # how protocol 2 writes bytes
        if encoding not in ("latin1", "latin-1"):
            raise _RefusedError(f"the codec {encoding!r}")
        return str.encode(text, "latin1")

    return {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("_codecs", "encode"): encode,
    }


def write_npy(path: str | Path, labels: Labels) -> None:
    """Writes the learnable-triangulation form (a pickled dictionary; readable by that project)."""
    cameras = {"R": labels.R, "t": labels.t[..., None], "K": labels.K, "dist": labels.dist}
    table = {column: (getattr(labels, name), kind) for name, (column, kind) in _COLUMNS.items()}
    tree: dict[str, object] = {name: list(getattr(labels, name)) for name in _NAMES}
    tree["cameras"] = _records({name: (value, "f4") for name, value in cameras.items()}, 2)
    tree["table"] = _records(table, 1)
    boxed = np.empty((), object)
    boxed[()] = tree
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array(file, boxed, version=(1, 0), allow_pickle=True)


def _records(columns: dict[str, tuple[np.ndarray, str]], depth: int) -> np.ndarray:
    """A structured array of named arrays and their types, which share ``depth`` dimensions."""
    types = [(name, kind, value.shape[depth:]) for name, (value, kind) in columns.items()]
    shape = next(iter(columns.values()))[0].shape[:depth]
    records = np.zeros(shape, types)
    for name, (value, _) in columns.items():
        records[name] = value
    return records


# --- the HDF5 form ---------------------------------------------------------------------------


def write_h5(path: str | Path, labels: Labels) -> None:
    """Writes the HDF5 form: one data set per field of `Labels`.

    The joints, nine tenths of it, are left uncompressed so that `read_labels` can map them: the
    312,000 frames of Human3.6M open in some milliseconds and loader processes share the memory.
    """
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = "ptri human36m labels 1"
        for name in _NAMES:
            file[name] = np.array(getattr(labels, name), dtype=h5py.string_dtype())
        for name, (kind, *_) in _ARRAYS.items():
            value = np.asarray(getattr(labels, name), kind)
            options = {}
            if value.nbytes > 4096 and name != "joints":
                options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                options["chunks"] = (min(len(value), 8192), *value.shape[1:])
            file.create_dataset(name, data=value, **options)


def _read_h5(path: Path) -> Labels:
    try:
        with h5py.File(path, "r") as file:
            names = {name: tuple(file[name].asstr()[:].tolist()) for name in _NAMES}
            arrays = {name: file[name][...] for name in _ARRAYS if name != "joints"}
            arrays["joints"] = _map(path, file["joints"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: damaged or not a labels file: {_one_line(error)}; make it again with: "
            "python scripts/prepare_h36m.py convert"
        ) from None
    return _check_shapes(Labels(**names, **arrays), path)


def _map(path: Path, data: h5py.Dataset) -> np.ndarray:
    """Maps an uncompressed data set into memory; reads any other."""
    offset = data.id.get_offset()
    if offset is None or data.chunks is not None or data.dtype != np.dtype("<f4"):
        return data[...]
    return np.memmap(path, "<f4", "r", offset, data.shape)


# --- checks ----------------------------------------------------------------------------------


def _check_shapes(labels: Labels, path: Path) -> Labels:
    S, C, N = len(labels.subject_names), len(labels.camera_names), len(labels.frame)
    for name, (_, *letters) in _ARRAYS.items():
        shape = tuple({"S": S, "C": C, "N": N}.get(letter, letter) for letter in letters)
        if getattr(labels, name).shape != shape:
            raise UserError(
                f"{path}: {name} has shape {getattr(labels, name).shape}, expected {shape}"
            )
    if N == 0:
        raise UserError(f"{path}: no frame is labelled")
    for name, limit in (("subject", S), ("action", len(labels.action_names))):
        values = getattr(labels, name)
        if values.min() < 0 or values.max() >= limit:
            raise UserError(f"{path}: {name} index outside 0..{limit - 1}")
    return labels


def check_camera(labels: Labels, subject: int, camera: int, source: str | Path) -> None:
    """Checks one camera of one subject.

    Raises:
        UserError: NaN, a focal length that is not positive, R not a rotation.
    """
    name = f"{source}: camera {labels.camera_names[camera]} of {labels.subject_names[subject]}"
    K, R = labels.K[subject, camera], labels.R[subject, camera]
    for key in ("K", "R", "t", "dist"):
        if not np.isfinite(getattr(labels, key)[subject, camera]).all():
            raise UserError(f"{name}: {key} holds NaN or infinity; expected finite numbers")
    if min(K[0, 0], K[1, 1]) <= 0:
        raise UserError(
            f"{name}: focal length {K[0, 0]:g} x {K[1, 1]:g} px; expected positive numbers"
        )
    if abs(K[[0, 1, 2, 2], [1, 0, 0, 1]]).max() > 1e-6 or abs(K[2, 2] - 1) > 1e-6:
        raise UserError(f"{name}: K = {K.tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    # Stored as float32, a rotation is orthonormal to about 1e-6.
    error = abs(R @ R.T - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(R) < 0:
        raise UserError(
            f"{name}: R is not a rotation (R R^T differs from I by {error:.2g}, determinant "
            f"{np.linalg.det(R):.2f})"
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
