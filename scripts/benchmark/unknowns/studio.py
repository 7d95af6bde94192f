"""Single frames in a studio whose rigs of other days are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.rig.cases import Cell, People, make_cases
from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.evaluation.metrics import mpjpe, rotation_error_deg, rotation_level
from ptri.models.pose_model import PoseModel
from ptri.people.rigs import Rig
from ptri.posterior.moments import posterior_from_cameras, posterior_mean
from ptri.posterior.prior import Prior
from ptri.rig.estimate import solve
from ptri.rig.joints import body_under
from ptri.rig.studio import learn_poses
from ptri.structures import Cameras, RigPosterior, tree_map

TESTED = ("S9", "S11")


class Outcome(NamedTuple):
    """What came of frames of a subject's rig, each alone."""

    mm: np.ndarray  # (3, B) MPJPE of joints under the true cameras, ...
    deg: np.ndarray  # (2, B) and mean rotation errors: without the prior, and with it
    level: np.ndarray  # (2, B, V - 1) of the true rotations in their stated regions
    accepted: np.ndarray  # (2, B)


def read_rigs(path: Path) -> dict[str, Rig]:
    """Human3.6M's rigs by subject, cameras in the order of the file.

    Raises:
        UserError: no such file, or other contents.
    """
    try:
        tree = json.loads(path.read_text())
        inner, outer = tree["intrinsics"], tree["extrinsics"]
        K = torch.tensor([camera["K"] for camera in inner.values()])
        size = torch.tensor([camera["size"] for camera in inner.values()])
        rigs = {}
        for subject, cameras in outer.items():
            R, t = ([cameras[name][part] for name in inner] for part in "Rt")
            cameras = Cameras(K, torch.tensor(R), torch.tensor(t).reshape(-1, 3))
            rigs[subject] = Rig(cameras, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--cameras {path}: {error}; expected JSON with intrinsics {{camera: K, size}} and "
            "extrinsics {subject: {camera: R, t}} (mm, world to camera)"
        ) from None
    return rigs


def learned(rigs: dict[str, Rig]) -> Prior:
    """What the rigs of all subjects but the tested ones say."""
    others = [rig.cameras for name, rig in rigs.items() if name not in (*TESTED, "S10")]
    R, t = (torch.stack(parts) for parts in list(zip(*others))[1:])
    poses = learn_poses(R, t)
    return Prior(poses.t.new_zeros(0, 0), poses)


def outcome(
    model: PoseModel,
    options: PosteriorConfig,
    cell: Cell,
    rig: Rig,
    prior: Prior,
    count: int,
    seed: int,
    people: People,
) -> Outcome:
    """Single frames before one rig, solved without and with what is known of it."""
    rigs = tree_map(lambda part: part.expand(count, *part.shape), rig)
    cases = make_cases(cell, count, seed, people, rig=rigs)
    given = cases.keypoints, cases.K

    def joints_error(posterior: RigPosterior, sides=None) -> Tensor:
        body = body_under(model, *given, posterior, sides)
        return mpjpe(body.joints3d.double(), cases.joints3d).flatten()

    mm = [joints_error(posterior_from_cameras(cases.cameras))]
    rest = []
    for known in (None, prior):
        solution = solve(model, *given, options, seed, prior=known)
        R, _ = posterior_mean(solution.posterior)
        mm.append(joints_error(solution.posterior, solution.sides))
        deg = rotation_error_deg(R, cases.cameras.R).mean(-1)
        accepted = torch.tensor([verdict.accepted for verdict in solution.verdicts])
        rest.append((deg, rotation_level(solution.posterior, cases.cameras.R), accepted))
    return Outcome(torch.stack(mm).numpy(), *(torch.stack(part).numpy() for part in zip(*rest)))
