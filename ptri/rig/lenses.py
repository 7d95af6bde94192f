"""What is known of focal lengths: given, by the device's name, or from the picture's size alone.

How far the log focal lengths may be from those of K is told as standard deviations by independent
sources: a column for each view, one for each group of views that have one kind of lens, and one for
all views of which nothing is known: whoever films with wide lenses does so with all cameras.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Sequence
from importlib import resources
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.rig.arrays import picture_sizes

GIVEN_STD = 0.01  # of a focal length that is given: what calibrations differ by
# Over the picture's shorter side, where nothing is known of a lens, and by how much cameras of one
# rig differ: fitted to seven kinds of rigs (docs/decisions.md), from 0.84 to 1.43 on average.
USUAL_FOCAL, UNKNOWN_STD, UNLIKE_STD = 1.06, 0.22, 0.10
# How far the principal point may be from the middle of the picture, where it is taken to be, over
# the shorter side, each axis: of the 99 devices' 0.007 and 0.010.
CENTRE_STD = 0.0085
DEVICE_STD = 0.03  # of a model's, by mode of recording and stabilisation
# Of models that are not in the table: mean and standard deviation of the log over those that are.
FAMILIES = {"iPhone": (1.274, 0.06), "iPad": (1.393, 0.06)}
# Over the picture's longer side, of a lens that is equivalent to one of 1 mm before a picture 36 mm
# wide: of 24 phones of the table 0.0277, standard deviation 2 %; with other modes and makers:
EQUIVALENT, EQUIVALENT_STD = 1 / 36, 0.05
OWN_STD = 0.01  # by which lenses of one kind differ among each other
LARGEST_STD = 1.0


@functools.cache
def devices() -> dict[str, dict]:
    """Focal length over the picture's shorter side, and distortion, of each device by its
    identifier (iPhone14,5) and, where it is known, by its name in shops (iPhone 13).

    99 of Apple's, 720 x 1280 px video (OpenCap's intrinsics, Apache-2.0).
    """
    table = json.loads(resources.files("ptri").joinpath("rig/devices.json").read_text())
    return table | {entry["name"]: entry for entry in table.values() if "name" in entry}


def device_focal(name: str) -> tuple[float, float]:
    """Focal length over the picture's shorter side, and its relative standard deviation.

    Raises:
        UserError: an unknown device.
    """
    found = devices().get(name) if isinstance(name, str) else None
    if found is not None:
        return found["focal"], DEVICE_STD
    for family, values in FAMILIES.items():
        if str(name).startswith(family):
            return values
    raise UserError(
        f"camera: {name!r:.80} is no known device; expected a name such as iPhone14,5 or iPhone "
        f"13, or {' or '.join(FAMILIES)} for one of them; None where it is not known"
    )


def model_of(device: str | None) -> str | None:
    """The model whose lenses are alike; None of a family, whose models differ."""
    entry = devices().get(device) if isinstance(device, str) else None
    return None if entry is None else entry.get("name", device)


class Lenses(NamedTuple):
    """What a user says of the lenses, see `ptri.estimate_rig`."""

    size: object = None  # px, of the pictures
    K_std: float | Sequence[float] | None = None
    camera: str | Sequence[str | None] | None = None
    group: Sequence[Hashable] | None = None
    source: Sequence[str] | None = None  # of K: GIVEN, DEVICE or SIZE; None: as above


GIVEN, DEVICE, SIZE = "given", "device", "size"  # where a K comes from; the last knows nothing else


EXACT = Lenses(K_std=0.0)


def find_lenses(K, num_views: int, lenses: Lenses) -> tuple[object, Tensor | None, list[str]]:
    """Intrinsics, and how far their focal lengths may be off.

    Args:
        K: (V, 3, 3) px, or None.

    Returns:
        K as given, else guessed; standard deviations (V, S) of the log focal lengths by S
        independent sources, None: K is exact; and where each K comes from, see `Lenses`.

    Raises:
        UserError: an argument is missing or wrong.
    """
    size, K_std, camera, group, source = lenses
    V = num_views
    cameras = [camera] * V if isinstance(camera, str) else _each("camera", camera, V)
    groups = _each("group", group, V)
    if K is not None and camera is not None:
        raise UserError("camera: K is given, too; give one of the two")
    std = _standard_deviations(K_std, V)
    if K is None:
        bare = [name is None and given is None for name, given in zip(cameras, std)]
        source = [SIZE if nothing else DEVICE for nothing in bare]
        K, usual = _guessed(size, cameras, V)
        groups = [model_of(name) if g is None else g for g, name in zip(groups, cameras)]
    else:
        usual = [GIVEN_STD] * V
    source = [GIVEN] * V if source is None else list(source)
    std = [usual[v] if std[v] is None else std[v] for v in range(V)]
    if not any(std):
        return K, None, source
    if not all(std):
        raise UserError("K_std: 0 for some views; give 0 for all, or a small number such as 0.001")
    kinds = list(dict.fromkeys(g for g in groups if g is not None))
    focal = torch.zeros(V, V + len(kinds) + 1, dtype=torch.float64)
    for v, kind in enumerate(groups):
        like = {std[w] for w, other in enumerate(groups) if kind is not None and other == kind}
        if len(like) > 1:
            raise UserError(
                f"group: views of {kind!r:.40} have focal lengths known to {min(like):.1%} and to "
                f"{max(like):.1%}; give those of a group one K_std, or let them have none"
            )
        # What all have in common, of a kind, its own.
        alone = UNLIKE_STD if source[v] == SIZE else std[v]
        own = alone if kind is None else min(alone, OWN_STD) / 2**0.5
        focal[v, -1] = math.sqrt(std[v] ** 2 - alone**2)
        focal[v, v] = own
        if kind is not None:
            focal[v, V + kinds.index(kind)] = math.sqrt(alone**2 - own**2)
    return K, focal, source


def _each(name: str, values, num_views: int) -> list:
    """One label for each view, None where there is none."""
    values = [None] * num_views if values is None else values
    listed = isinstance(values, (list, tuple)) and len(values) == num_views
    if not listed or not all(v is None or isinstance(v, (str, int)) for v in values):
        raise UserError(f"{name}: {values!r:.80}; expected a name for each of {num_views} views")
    return list(values)


def _standard_deviations(K_std, num_views: int) -> list[float | None]:
    try:
        plain = np.asarray(K_std, dtype=object).tolist()  # of arrays and tensors, too
    except (TypeError, ValueError):
        plain = [K_std]  # said below
    values = plain if isinstance(plain, list) else [plain] * num_views
    for value in values:
        number = value is None or (isinstance(value, Real) and not isinstance(value, bool))
        if len(values) != num_views or not number or not 0 <= (value or 0) <= LARGEST_STD:
            raise UserError(
                f"K_std: {K_std!r:.80}; expected the relative standard deviation of focal lengths, "
                f"0 (exact) to {LARGEST_STD:g}, one or one for each of {num_views} views"
            )
    return values


def _guessed(size, cameras: list[str | None], num_views: int) -> tuple[Tensor, list[float]]:
    """K (V, 3, 3) of pictures of a size, and the standard deviation of each log focal length."""
    if size is None:
        raise UserError(
            "K: None, so that size is needed: width and height of the pictures in px, (2,) or "
            f"({num_views}, 2)"
        )
    size = picture_sizes(size, num_views)
    known = [(USUAL_FOCAL, UNKNOWN_STD) if c is None else device_focal(c) for c in cameras]
    focal = size.amin(1) * torch.tensor([value for value, _ in known], dtype=torch.float64)
    K = torch.eye(3, dtype=torch.float64).repeat(num_views, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2] = (size - 1) / 2
    return K, [std for _, std in known]
