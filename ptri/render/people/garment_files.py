"""Reads and checks a folder of MakeHuman garments.

The folder holds ``outfits/ shoes/ hair/ hats/ eyebrows/`` with ``NAME.npz`` (arrays: `_ARRAYS`)
and, beside it, ``NAME_diffuse.jpg`` or ``.png`` (hair and eyebrows with alpha) and ``NAME_ao.jpg``
(ambient occlusion); optionally ``eyes/*.jpg`` with ``anny_base_map.npz`` (eye_base, eye_uv).
Vertices are bound to MakeHuman's base mesh "hm08" (`ptri.render.people.garments.fit`).
"""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptri.errors import UserError

CATEGORIES = ("outfits", "shoes", "hair", "hats", "eyebrows")
NUM_BASE = 19158  # vertices of the base mesh
# name -> (columns, upper limit of an index or None for a real number)
_ARRAYS = {
    "vertices": ((3,), None),
    "uv": ((2,), None),
    "ref": ((3,), NUM_BASE),
    "weight": ((3,), None),
    "offset": ((3,), None),
    "scale_verts": ((2,), NUM_BASE),
    "scale_den": ((), None),
    "delete_verts": ((), NUM_BASE),
    "faces": ((3,), "vertices"),
    "face_uv": ((3,), "uv"),
}


class GarmentFolder(NamedTuple):
    """Checked garment files by category, and the pictures of eyes."""

    folder: Path
    paths: dict[str, tuple[Path, ...]]
    eyes: tuple[Path, ...]


@functools.cache
def open_folder(folder: str) -> GarmentFolder:
    """Lists a garment folder and checks every file of it.

    Raises:
        UserError: no such folder, no outfit or no hair in it, or a damaged file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"render.garments: {folder}: not a folder; give one with outfits/, shoes/, hair/ ... "
            'or "" for procedural clothes only'
        )
    paths = {name: tuple(sorted((root / name).glob("*.npz"))) for name in CATEGORIES}
    for category in ("outfits", "hair"):
        if not paths[category]:
            raise UserError(
                f"render.garments: {folder}: no {category}/*.npz in it; expected garments bound to "
                "MakeHuman's base mesh (README, garment folders)"
            )
    for path in (path for group in paths.values() for path in group):
        read_arrays(path)
    eyes = tuple(sorted((root / "eyes").glob("*.jpg")))
    return GarmentFolder(root, paths, eyes if (root / "anny_base_map.npz").exists() else ())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a garment file, indices as int64.

    Raises:
        UserError: unreadable, or an array is missing, of a wrong shape, or points outside.
    """
    arrays = _load(path)

    def fail(what: str) -> None:
        raise UserError(f"{path}: damaged garment file: {what}; fetch it again or remove it")

    for name, (columns, limit) in _ARRAYS.items():
        if name not in arrays:
            fail(f"array {name} is missing")
        array = arrays[name]
        if array.shape[1:] != columns or array.ndim == 0:
            fail(f"{name} has shape {array.shape}")
        if limit is None:
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                fail(f"{name} holds something else than finite numbers")
            continue
        limit = len(arrays[limit]) if isinstance(limit, str) else limit
        if array.dtype.kind not in "iu":
            fail(f"{name} holds no integers")
        arrays[name] = array.astype(np.int64)
        if len(array) and not 0 <= arrays[name].min() <= arrays[name].max() < limit:
            fail(f"{name} points outside of 0..{limit - 1}")
    for name in ("ref", "weight", "offset"):
        if len(arrays[name]) != len(arrays["vertices"]):
            fail(f"{name} has {len(arrays[name])} rows for {len(arrays['vertices'])} vertices")
    if len(arrays["faces"]) == 0 or len(arrays["faces"]) != len(arrays["face_uv"]):
        fail(f"{len(arrays['faces'])} faces, {len(arrays['face_uv'])} faces of the texture")
    if np.abs(arrays["weight"].sum(1) - 1).max() > 0.02:
        fail("weights do not sum to 1")
    if arrays["scale_verts"].shape != (3, 2) or arrays["scale_den"].shape != (3,):
        fail("scale_verts or scale_den has not three rows")
    if arrays["scale_den"].min() <= 0:
        fail("scale_den is not positive")
    return arrays


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        message = f"{path}: not a readable garment file ({error}); fetch it again or remove it"
        raise UserError(message) from None


@functools.cache
def read_eye_map(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Base vertices (e,) of the eyeballs and their texture coordinates (e, 2).

    Raises:
        UserError: a damaged anny_base_map.npz.
    """
    path = folder / "anny_base_map.npz"
    arrays = _load(path)
    vertices, uv = (arrays.get(name, np.zeros(0)) for name in ("eye_base", "eye_uv"))
    vertices, uv = vertices.astype(np.int64), uv.astype(np.float32)
    if uv.shape != (len(vertices), 2) or not 0 <= vertices.min() <= vertices.max() < NUM_BASE:
        raise UserError(f"{path}: eye_base and eye_uv do not fit; fetch it again or remove it")
    return vertices, uv
