"""Rigs whose focal lengths nobody told, or told wrongly, and what is made of them."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.rig.adjust import adjust_lenses
from benchmark.rig.bound import invert, jacobians
from benchmark.rig.cases import Cases, Cell, People, make_cases
from benchmark.rig.peers import NotInstalledError
from ptri.config_sections import PosteriorConfig
from ptri.evaluation.metrics import rotation_error_deg, rotation_level
from ptri.geometry.cameras import with_focal
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_mean
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.rig.lenses import GIVEN_STD, OWN_STD
from ptri.rig.result import Solved
from ptri.skeleton import H36M17
from ptri.structures import Keypoints
from ptri.verdict.verdict import Code

STD = 0.2  # of the log of a focal length over what it is taken for
WRONG = (0.6, 0.9, 1.1, 1.4)  # of the true focal length, given as such
NAMED = {"one": Code.FOCAL_LENGTH, "all": Code.FOCAL_LENGTHS}


class Outcome(NamedTuple):
    """What came of a rig with unknown focal lengths."""

    off: np.ndarray  # (V,) log focal length found over the true one
    std: np.ndarray  # (V,) stated
    bound: np.ndarray  # (V,) Cramer-Rao bound of the standard deviation
    unknown_deg: float  # mean error of the pairs' rotations, ...
    known_deg: float  # ... and with the true focal lengths
    level: np.ndarray  # (V - 1,) of the true rotations in their stated regions
    peer_off: np.ndarray  # (V,) of bundle adjustment by Ceres from OpenCV's rig; NaN: not installed
    peer_deg: float
    accepted: bool
    seconds: float  # over those of the solve with the true focal lengths


class Mistake(NamedTuple):
    """What came of a rig with a wrong K."""

    named: bool
    wrong_deg: float  # mean error of the pairs' rotations, ...
    exact_deg: float  # ... and with the true K


def _sources(num_views: int, common: bool, std: float) -> Tensor:
    """Standard deviations (V, S) of the log focal lengths, as `ptri.rig.lenses.find_lenses`."""
    own = torch.eye(num_views, dtype=torch.float64)
    if not common:
        return std * own
    shared = (std**2 - OWN_STD**2 / 2) ** 0.5
    return torch.cat([OWN_STD / 2**0.5 * own, torch.full_like(own[:, :1], shared)], 1)


def _given(cases: Cases, K: Tensor, focal: Tensor | None) -> RigInput:
    T = cases.K.shape[1]
    keypoints = Keypoints(*(value[0] for value in cases.keypoints))
    focal = None if focal is None else focal.expand(T, -1, -1)
    return RigInput(keypoints, K, H36M17, focal)


def _error(solved: Solved, cases: Cases) -> float:
    R, _ = posterior_mean(solved.posterior)
    return float(rotation_error_deg(R[0], cases.cameras.R[0]).mean())


def outcome(
    model: PoseModel,
    options: PosteriorConfig,
    cell: Cell,
    common: bool,
    number: int,
    seed: int,
    people: People,
) -> Outcome:
    """A rig whose focal lengths are off by some tenths, each for itself or all alike."""
    cases = make_cases(cell, 1, seed, people, number)
    T, V = cases.K.shape[1:3]
    generator = torch.Generator().manual_seed(1000 * seed + number)
    sources = _sources(V, common, STD)
    true = sources @ torch.randn(sources.shape[1], generator=generator, dtype=torch.float64)
    K = with_focal(cases.K[0], -true.expand(T, V))
    start = time.perf_counter()
    known = solve_cameras(model, _given(cases, cases.K[0], None), options, seed)
    middle = time.perf_counter()
    solved = solve_cameras(model, _given(cases, K, sources), options, seed)
    seconds = (time.perf_counter() - middle) / (middle - start)
    weights, log_focal = solved.posterior.log_weights[:, 0].exp(), solved.posterior.log_focal[:, 0]
    mean = weights @ log_focal
    std = (weights @ (log_focal - mean).square()).sqrt()
    level = rotation_level(solved.posterior, cases.cameras.R)[0]
    numbers = (mean - true).numpy(), std.numpy(), _bound(cases, sources).numpy()
    errors = _error(solved, cases), _error(known, cases)
    peer = _peer(cases._replace(K=K[None]), true.numpy(), common, seed)
    return Outcome(*numbers, *errors, level.numpy(), *peer, solved.verdict.accepted, seconds)


def _peer(cases: Cases, true: np.ndarray, common: bool, seed: int) -> tuple[np.ndarray, float]:
    """How far bundle adjustment is off with free focal lengths: of their logs, and deg."""
    try:
        rig, log_focal = adjust_lenses(cases, common, seed)
    except NotInstalledError:
        return np.full(len(true), np.nan), np.nan
    if rig is None:
        return np.full(len(true), np.inf), 180.0
    R = torch.from_numpy(rig.R)
    return log_focal - true, float(rotation_error_deg(R, cases.cameras.R[0]).mean())


def mistake(
    model: PoseModel,
    options: PosteriorConfig,
    cell: Cell,
    factor: float,
    which: str,
    number: int,
    seed: int,
    people: People,
) -> Mistake:
    """A rig with a focal length, or all, given so many times as long as they are."""
    cases = make_cases(cell, 1, seed, people, number)
    T, V = cases.K.shape[1:3]
    view = number % V
    wrong = torch.zeros(V, dtype=torch.float64)
    wrong[slice(view, view + 1) if which == "one" else slice(V)] = float(np.log(factor))
    K = with_focal(cases.K[0], wrong.expand(T, V))
    given = _given(cases, K, _sources(V, False, GIVEN_STD))
    solved = solve_cameras(model, given, options, seed)
    exact = solve_cameras(model, _given(cases, cases.K[0], None), options, seed)
    named = solved.verdict.code is NAMED[which]
    named = named and solved.verdict.view == (view if which == "one" else None)
    return Mistake(named, _error(solved, cases), _error(exact, cases))


def _bound(cases: Cases, sources: Tensor) -> Tensor:
    """Cramer-Rao bound (V,) of the log focal lengths' standard deviations.

    Of clean points with independent errors, joints and poses unknown, without bones; the prior of
    the focal lengths counts.
    """
    to_joint, to_camera = jacobians(cases)  # (1, T, V, J, 2, 3), (1, T, V - 1, J, 2, 6)
    weight = (cases.clean / cases.sigma[:, None, :, None])[..., None, None]
    V = weight.shape[2]
    used = (cases.clean.sum(2) >= 2).double()[:, :, None, :, None, None]
    R, t = cases.cameras.R[0], cases.cameras.t[0]
    camera = torch.einsum("vac,tjc->tvja", R, cases.joints3d[0]) + t[:, None]
    lengths = cases.K[0].diagonal(dim1=-2, dim2=-1)[..., None, :2]
    by_focal = lengths * camera[..., :2] / camera[..., 2:]  # (T, V, J, 2), of the log
    rows = by_focal.new_zeros(*by_focal.shape, 6 * (V - 1) + V)
    for v in range(V):
        rows[:, v, ..., 6 * (V - 1) + v] = by_focal[:, v]
        if v:
            rows[:, v, ..., 6 * (v - 1) : 6 * v] = to_camera[0, :, v - 1]
    weight = (weight * used)[0]
    rows, joints = rows * weight, to_joint[0] * weight
    cross = torch.einsum("tvjcg,tvjcx->tjgx", rows, joints)
    own = torch.einsum("tvjcx,tvjcy->tjxy", joints, joints)
    own = own + torch.diag_embed((1 - used[0, :, 0, :, 0]).expand(-1, -1, 3))
    lost = torch.einsum("tjgx,tjxh->gh", cross, torch.linalg.solve(own, cross.mT))
    information = torch.einsum("tvjcg,tvjch->gh", rows, rows) - lost
    information[-V:, -V:] += torch.linalg.inv(sources @ sources.mT)
    # `invert` fixes the scale of the poses; focal lengths follow by elimination.
    poses, cross, focal = (
        information[:-V, :-V],
        information[:-V, -V:],
        information[-V:, -V:],
    )
    known = invert(poses[None], cases.cameras.t)[0]
    return torch.linalg.inv(focal - cross.mT @ known @ cross).diagonal().sqrt()
