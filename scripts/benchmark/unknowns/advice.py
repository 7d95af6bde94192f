"""Whether advice to film elsewhere comes true: predicted, and found where somebody follows it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.rig.cases import BIAS, CONFIDENCE, Cases, Cell, People, make_cases
from ptri.config_sections import PosteriorConfig
from ptri.evaluation.metrics import rotation_error_deg
from ptri.geometry.cameras import project
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_mean
from ptri.rig.advice import Advice, advise
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, tree_map


class Outcome(NamedTuple):
    """Stated deviations and errors (deg) of some frames, of as many more, and of as many where the
    advice says."""

    stated: tuple[float, float, float]
    predicted: tuple[float, float]  # of the last two
    error: tuple[float, float, float]


def outcome(
    model: PoseModel, options: PosteriorConfig, cell: Cell, number: int, seed: int, people: People
) -> Outcome:
    """A rig by detector-like errors: offsets that stay, and independent ones."""
    T = cell.num_frames
    cases = make_cases(cell._replace(num_frames=2 * T), 1, seed, people, number)
    generator = torch.Generator().manual_seed(1000 * seed + number)
    V, J = cases.keypoints.xy.shape[2:4]
    offset = BIAS * torch.randn(1, V, J, 2, generator=generator, dtype=torch.float64)
    first, later = cases.joints3d[0].split(T)
    early, more = (_seen(cases, part, offset, cell.noise, generator) for part in (first, later))
    now, advice = _solve(model, options, [early], cases, seed)
    same, as_much = _solve(model, options, [early, more], cases, seed)
    # The advice is given at the size the rig was found to have.
    size = cases.cameras.t.norm() / now[1].norm()
    move = size * torch.tensor(advice.place) - first.median(1).values.median(0).values
    there = _seen(cases, later + move, offset, cell.noise, generator)
    other, followed = _solve(model, options, [early, there], cases, seed)
    errors = (float(rotation_error_deg(R, cases.cameras.R).mean()) for R, _ in (now, same, other))
    stated = tuple(one.rotation_deg for one in (advice, as_much, followed))
    return Outcome(stated, (advice.same_deg, advice.elsewhere_deg), tuple(errors))


def _seen(
    cases: Cases, joints: Tensor, offset: Tensor, noise: float, generator: torch.Generator
) -> Keypoints:
    """Keypoints (T, V, J, ...) of joints (T, J, 3) mm."""
    cameras = tree_map(lambda part: part.unsqueeze(1), cases.cameras._replace(K=cases.K[:, 0]))
    xy = project(joints[None], cameras)[0]
    error = noise * torch.randn(xy.shape, generator=generator, dtype=torch.float64)
    inside = ((xy >= 0) & (xy <= 2 * cases.K[0, 0, :, None, :2, 2])).all(-1)
    covariance = noise**2 * torch.eye(2, dtype=torch.float64).expand(*xy.shape, 2)
    xy = torch.where(inside[..., None], xy + offset + error, torch.nan)
    return Keypoints(xy, covariance, CONFIDENCE * inside.double())


def _solve(
    model: PoseModel, options: PosteriorConfig, parts: list[Keypoints], cases: Cases, seed: int
) -> tuple[tuple[Tensor, Tensor], Advice]:
    keypoints = Keypoints(*(torch.cat(values) for values in zip(*parts)))
    K = cases.K[0, :1].expand(len(keypoints.xy), -1, -1, -1)
    given = RigInput(keypoints, K, H36M17)
    solved = solve_cameras(model, given, options, seed)
    return posterior_mean(solved.posterior), advise(solved, given)
