"""Two persons before one rig, and what is made of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from benchmark.rig.cases import Cell, People, make_cases
from ptri.config_sections import PosteriorConfig
from ptri.evaluation.metrics import rotation_error_deg
from ptri.models.pose_model import PoseModel
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.rig.result import RigEstimate, with_joints
from ptri.rig.scale import body_height
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, take

SIZES = (1.0, 0.75)  # of grown-ups: the second person is a child


class Outcome(NamedTuple):
    """What came of a rig before which two persons moved."""

    both_deg: float  # mean error of the pairs' rotations, of both persons' frames, ...
    alone_deg: np.ndarray  # (2,) ... of one's alone, ...
    one_deg: float  # ... and of both, taken to be one body
    ratio_off: float  # of the second person's height over the first one's, found over true minus 1


def outcome(
    model: PoseModel, options: PosteriorConfig, cell: Cell, number: int, seed: int, people: People
) -> Outcome:
    """Two persons, who are told by number, together, each alone, and taken to be one."""
    cases = make_cases(cell, 1, seed, people, number)
    keypoints, K = Keypoints(*(value[0] for value in cases.keypoints)), cases.K[0]
    T, V = cell.num_frames, K.shape[1]
    numbers = torch.arange(2).repeat_interleave(T)
    one = RigInput(keypoints, K, H36M17)
    both = one._replace(persons=numbers[:, None].expand(-1, V), labels=(0, 1))
    alone = [take(one, numbers == person) for person in (0, 1)]
    solved, first, second, mixed = (
        with_joints(model, solve_cameras(model, given, options, seed), given)
        for given in (both, *alone, one)
    )

    def error(estimate: RigEstimate) -> float:
        return float(rotation_error_deg(estimate.R, cases.cameras.R[0]).mean())

    true = [float(body_height(cases.joints3d[0, numbers == person])) for person in (0, 1)]
    found = [person.height for person in solved.persons]
    ratio = found[1] / found[0] / (true[1] / true[0]) - 1
    angles = error(solved), np.array([error(first), error(second)]), error(mixed)
    return Outcome(*angles, abs(ratio))
