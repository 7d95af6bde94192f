"""Rigs whose views started at different moments, and what is made of them.

A person moves before a rig as in `benchmark.rig.cases`, drawn at several times the frame rate; each
view shows a window of it, late by its own part of a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.rig.cases import Cell, People, make_cases
from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.evaluation.metrics import rotation_error_deg
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_mean
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.rig.sync import find_lags, in_step
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

FINER = 4  # drawn moments in a frame
FPS = 30.0


class Case(NamedTuple):
    """A rig out of step."""

    given: RigInput
    late: Tensor  # (V,) frames, truth
    R: Tensor  # (V, 3, 3) truth


class Outcome(NamedTuple):
    """What came of a case; NaN where no clocks were found."""

    off: np.ndarray  # (V - 1,) frames, found minus true
    std: np.ndarray  # (V - 1,) frames, stated
    found_deg: float  # mean error of the pairs' rotations with the clocks that were found, ...
    true_deg: float  # ... with the true ones, ...
    as_is_deg: float  # ... and with the views as they are


def make_clock_cases(
    cell: Cell, count: int, most: float, seed: int, people: People, first: int = 0
) -> list[Case]:
    """Cases of a cell from number ``first``; views are late by at most ``most`` frames.

    Args:
        cell: its ``num_frames`` are those of every view, at `FPS`.
    """
    margin = int(np.ceil(most / 2))
    T, fine = cell.num_frames, cell._replace(fps=FINER * FPS)
    fine = fine._replace(num_frames=FINER * (T + 2 * margin) + 1)
    cases = []
    for number in range(first, first + count):
        made = make_cases(fine, 1, seed, people, number)
        V = made.K.shape[2]
        generator = torch.Generator().manual_seed(1000 * seed + number)
        late = torch.randint(-FINER * margin, FINER * margin + 1, (V,), generator=generator)
        rows = FINER * margin + FINER * torch.arange(T)[:, None] - late  # (T, V)
        view = torch.arange(V)
        keypoints = Keypoints(*(value[0][rows, view] for value in made.keypoints))
        given = RigInput(keypoints, made.K[0, :T], H36M17)
        cases.append(Case(given, (late - late[0]).double() / FINER, made.cameras.R[0]))
    return cases


def outcome(model: PoseModel, options: PosteriorConfig, case: Case, seed: int) -> Outcome:
    """Clocks found, and cameras with them."""

    def error(late: Tensor | None) -> float:
        given = case.given if late is None else in_step(case.given, late)
        R, _ = posterior_mean(solve_cameras(model, given, options, seed).posterior)
        return float(rotation_error_deg(R[0], case.R).mean())

    true, as_is = error(case.late), error(None)
    try:
        lags = find_lags(model, case.given, options, seed)
    except UserError:
        nothing = np.full(len(case.late) - 1, np.nan)
        return Outcome(nothing, nothing, np.nan, true, as_is)
    off = (lags.frames - case.late)[1:].numpy()
    return Outcome(off, lags.std[1:].numpy(), error(lags.frames), true, as_is)
