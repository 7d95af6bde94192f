"""Rigs whose cameras were known before, one of which has moved since or none."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.rig.cases import Cell, People, make_cases
from ptri.config_sections import PosteriorConfig
from ptri.evaluation.metrics import rotation_error_deg, rotation_level
from ptri.geometry.cameras import to_reference
from ptri.geometry.rotations import so3_exp
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_mean
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.rig.known import KnownCameras, check_known, solve_known
from ptri.rig.result import Solved
from ptri.rig.scale import HUMAN_BONES
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints

KNOWN_STD = (0.5, 20.0)  # deg and mm, of each camera and axis
MOVED = (4.0, 150.0)  # deg and mm, in a random direction


class Outcome(NamedTuple):
    """What came of a rig; errors are means of the pairs' rotations in deg."""

    alone: float  # by keypoints alone
    given: float  # of what was known
    known: float  # with it
    level: list[float]  # (V - 1,) of the true rotations in their stated regions
    falsely: int  # cameras that are said to have moved
    moved: float  # error where one camera has moved, ...
    named: bool  # ... whether that one and no other is said to have; of two views both


def outcome(
    model: PoseModel, options: PosteriorConfig, cell: Cell, number: int, seed: int, people: People
) -> Outcome:
    cases = make_cases(cell, 1, seed, people, number)
    keypoints, K = Keypoints(*(value[0] for value in cases.keypoints)), cases.K[0]
    given, V = RigInput(keypoints, K, H36M17), K.shape[1]
    generator = torch.Generator().manual_seed(1000 * seed + number)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def turned(R: Tensor, t: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        turn = so3_exp(w)
        return turn @ R, (turn @ t.unsqueeze(-1)).squeeze(-1) + d

    def error(R: Tensor) -> float:
        return float(rotation_error_deg(R, cases.cameras.R[0]).mean())

    def solved(R: Tensor, t: Tensor) -> tuple[Solved, float]:
        known = check_known(KnownCameras(R, t, *KNOWN_STD), V, "cpu")
        found = solve_known(model, given, options, seed, 50, HUMAN_BONES, known)
        return found, error(posterior_mean(found.posterior)[0][0])

    degrees, mm = KNOWN_STD
    _, R, t = (part[0] for part in cases.cameras)
    R, t = turned(R, t, math.radians(degrees) * normal(V, 3), mm * normal(V, 3))
    alone, _ = posterior_mean(solve_cameras(model, given, options, seed).posterior)
    known, known_deg = solved(R, t)
    view = number % V
    w, d = (torch.nn.functional.normalize(normal(3), dim=0) for _ in range(2))
    other_R, other_t = R.clone(), t.clone()
    move = math.radians(MOVED[0]) * w, MOVED[1] * d
    other_R[view], other_t[view] = turned(R[view], t[view], *move)
    moved, moved_deg = solved(other_R, other_t)
    gone = [chance > 0.5 for chance in moved.moved]
    return Outcome(
        error(alone[0]),
        error(to_reference(Cameras(R, R, t)).R),
        known_deg,
        rotation_level(known.posterior, cases.cameras.R)[0].tolist(),
        sum(chance > 0.5 for chance in known.moved),
        moved_deg,
        gone == [v == view or V == 2 for v in range(V)],
    )
