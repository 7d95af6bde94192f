"""Cameras that are known before: an older estimate, a board's calibration, COLMAP's rig.

The keypoints are solved alone first. Which cameras have moved since is the explanation with the
largest evidence: by chance each has, and may then stand anywhere near. Those that have not join the
posterior (`ptri.posterior.prior`), or, where they are given as exact, are it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.geometry.cameras import to_reference
from ptri.geometry.rotations import rotation_mean, skew
from ptri.models.pose_model import PoseModel
from ptri.posterior.modes import INFLATION, cameras_of
from ptri.posterior.moments import posterior_from_cameras
from ptri.posterior.prior import PosePrior, differences
from ptri.posterior.sampling import RigSolution
from ptri.rig.arrays import as_tensor
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve_cameras
from ptri.rig.result import RigEstimate, Solved
from ptri.rig.scale import HUMAN_BONES, KNOWN_CAMERAS, Scale
from ptri.structures import Cameras, RigPosterior, Views, take
from ptri.verdict.verdict import Code, Verdict

MOVED_CHANCE = 0.05  # of a camera between two recordings
MOVED_STD = (math.radians(10.0), 300.0)  # rad, mm: by how much, where it has
LEAST_STD = (1e-4, 0.1)  # rad, mm
FREE_STD = (2.0, 1e4)  # of a camera that nothing is known of
# What is no objection to cameras that need not be found.
TOO_LITTLE = (
    *(Code.UNCERTAIN, Code.SEVERAL_MODES, Code.PARALLAX, Code.ON_A_LINE, Code.NO_SAMPLE),
    Code.FOCAL_UNKNOWN,
)
NUM_SAMPLES = 256  # that tell what keypoints say of the cameras, of each mode
MOST_VIEWS = 8  # of which every set may have moved; of more views one or two, or all


class KnownCameras(NamedTuple):
    """Where some or all of V cameras were, world to camera, x_cam = R x + t."""

    R: object  # (V, 3, 3); NaN: not known
    t: object  # (V, 3) mm
    # Standard deviations of each camera's rotation (deg, an axis) and centre (mm, an axis), one or
    # (V,); both 0: exact.
    rotation_std: object = 1.0
    centre_std: object = 30.0
    scale_std: float = 0.0  # relative, of all lengths; inf: the rig's size is not known (COLMAP)
    # (6 (V - 1), 6 (V - 1)) of rotation vectors (rad) and translations (mm) of views 1..., against
    # view 0 (`ptri.posterior.prior`); None: from the standard deviations above.
    covariance: object = None


class _Known(NamedTuple):
    """The same, checked; float64."""

    R: Tensor  # (V, 3, 3)
    t: Tensor  # (V, 3) mm
    std: Tensor  # (V, 6) rad and mm
    scale_std: float
    covariance: Tensor | None
    unknown: tuple[int, ...]  # views

    @property
    def exact(self) -> bool:
        return self.covariance is None and not bool(self.std.any()) and not self.unknown


def known_from(estimate: RigEstimate) -> KnownCameras:
    """The cameras of an earlier estimate of the same views, with all that is uncertain of them."""
    mean = PosePrior(estimate.R, estimate.t, None)
    weights = estimate.posterior.log_weights[:, 0].exp()
    away = differences(Views(*(part[:, 0] for part in estimate.posterior.views)), mean)
    covariance = torch.einsum("m,mi,mj->ij", weights, away, away)
    # Samples are few for so many dimensions, and all of one size in some of them.
    least = torch.diag(away.new_tensor(LEAST_STD).repeat_interleave(3).square())
    return KnownCameras(
        estimate.R,
        estimate.t,
        covariance=covariance + torch.block_diag(*[least] * (len(estimate.R) - 1)),
    )


def check_known(known: KnownCameras, num_views: int, device) -> _Known:
    """Checks cameras that are known before.

    Raises:
        UserError: no `KnownCameras`, wrong shapes, no rotations, fewer than two cameras.
    """
    if not isinstance(known, KnownCameras):
        raise UserError(
            f"prior: {type(known).__name__}; expected ptri.KnownCameras(R, t), or an estimate"
        )
    V, count = num_views, "one per view of xy"
    R = as_tensor(known.R, "prior.R", device, (V, 3, 3), count)
    t = as_tensor(known.t, "prior.t", device, (V, 3), count)
    unknown = [v for v in range(V) if not bool(torch.isfinite(R[v]).all() & t[v].isfinite().all())]
    if V - len(unknown) < 2:
        raise UserError(f"prior: {V - len(unknown)} known camera; two at least say something")
    eye = torch.eye(3).to(R)
    R, t = R.clone(), t.clone()
    R[unknown], t[unknown] = eye, 0.0
    lawful = ((R @ R.mT - eye).abs().amax((1, 2)) < 1e-3) & (torch.linalg.det(R) > 0)
    if not bool(lawful.all()):
        view = int((~lawful).nonzero()[0])
        raise UserError(f"prior.R: no rotation at view {view}; expected x_cam = R x + t")
    parts = []
    for name, factor in (("rotation_std", math.pi / 180), ("centre_std", 1.0)):
        std = as_tensor(getattr(known, name), f"prior.{name}", device)
        if std.shape not in ((), (V,)) or not bool(((std >= 0) & std.isfinite()).all()):
            raise UserError(f"prior.{name}: expected one number >= 0, or {V}, one per view")
        parts.append((factor * std).expand(V)[:, None].expand(V, 3))
    covariance = known.covariance
    if covariance is not None:
        size = 6 * (V - 1)
        covariance = as_tensor(covariance, "prior.covariance", device, (size, size), "6 (V - 1)")
        if unknown or not bool((torch.linalg.eigvalsh(covariance) > 0).all()):
            raise UserError("prior.covariance: expected a positive definite one of known cameras")
    if not known.scale_std >= 0:
        raise UserError(f"prior.scale_std: {known.scale_std!r:.40}; expected a number >= 0")
    return _Known(R, t, torch.cat(parts, 1), known.scale_std, covariance, tuple(unknown))


def solve_known(
    model: PoseModel,
    given: RigInput,
    options: PosteriorConfig,
    seed: int,
    max_frames: int,
    scale: Scale,
    known: _Known,
    doubt: Verdict | None = None,
) -> Solved:
    """`solve_cameras` of a rig whose cameras were known before."""
    if known.exact and scale != HUMAN_BONES:
        raise UserError("scale: the cameras are given as exact, and tell lengths; leave it out")
    numbers = options, seed, max_frames, scale
    # Alone, but for a start: where the cameras were, and this is too little to count.
    R, t = to_reference(Cameras(known.R, known.R, known.t))[1:]
    hint = None
    if not known.unknown:
        hint = PosePrior(R, t, 1e-9 * torch.eye(6 * (len(R) - 1)).to(t))
    alone = solve_cameras(model, given, *numbers, doubt=doubt, poses=hint)
    if alone.rig is None:  # views were left out
        return alone
    moved, found = find_moved(alone.rig, known)
    gone = [view for view, chance in enumerate(moved) if chance > 0.5]
    if len(gone) + len(known.unknown) > len(moved) - 2 and not alone.verdict.accepted:
        # Keypoints that tell no rig do not tell that every camera has moved.
        gone, moved = [], tuple(min(chance, MOVED_CHANCE) for chance in moved)
    alone = alone._replace(moved=moved)
    if known.exact:
        cameras = Cameras(known.R[None], R[None], t[None])
        verdict = alone.verdict
        if verdict.code in TOO_LITTLE:
            verdict = Verdict(Code.ACCEPTED, figures=verdict.figures)
        if gone and verdict.accepted:
            view = gone[0] if len(gone) == 1 else None
            code = Code.ELSEWHERE if view is None else Code.ELSEWHERE_ONE
            verdict = Verdict(code, view, figures=verdict.figures)
        posterior = posterior_from_cameras(cameras)
        log_focal = posterior_mean_focal(alone.posterior)
        return alone._replace(
            posterior=posterior._replace(log_focal=log_focal), verdict=verdict, scale=KNOWN_CAMERAS
        )
    prior = _law(known, *found, [*known.unknown, *gone])
    if prior is None:
        return alone
    solved = solve_cameras(model, given, *numbers, doubt=doubt, poses=prior)
    by_cameras = scale == HUMAN_BONES and math.isfinite(known.scale_std)
    return solved._replace(moved=moved, scale=KNOWN_CAMERAS if by_cameras else solved.scale)


def posterior_mean_focal(posterior: RigPosterior) -> Tensor:
    """The mean (1, 1, F) of the log focal lengths of a rig (B = 1)."""
    weights = posterior.log_weights.exp()
    return torch.einsum("mb,mbf->bf", weights, posterior.log_focal)[None]


def find_moved(rig: RigSolution, known: _Known) -> tuple[tuple[float, ...], tuple[Tensor, Tensor]]:
    """How probably each camera is elsewhere, by what keypoints alone say of a rig (B = 1).

    Returns:
        Chances (V,), NaN where nothing was known of a camera; and the cameras (V, 3, 3), (V, 3) mm
        of the mode that explains best what is known.
    """
    V = rig.posterior.R.shape[2]
    others = [view for view in range(V) if view not in known.unknown]
    most = len(others) - 2 if V <= MOST_VIEWS else 2
    sets = list(chain.from_iterable(combinations(others, n) for n in range(most + 1)))
    sets = list(dict.fromkeys([*sets, tuple(others)]))
    scores, means = [], []  # of each mode and set
    for log_mass, views in _modes(rig):
        weights = views.t.new_full(views.t.shape[:2], 1 / len(views.t))
        R, t = rotation_mean(views.R, weights), views.t.mean(0)
        away = differences(views, PosePrior(R.expand_as(views.R), t.expand_as(views.t), None))
        told = away.mT @ away / len(away)
        prior = _law(known, R, t, known.unknown)
        base = told + torch.linalg.inv(prior.information)
        off = differences(Views(R, t, t[:0, 0]), prior)
        means.append((R, t))
        for chosen in sets:
            covariance = base + sum(_move(R, t, view, MOVED_STD) for view in chosen)
            # Against each other: all have moved where all but one have.
            count = min(len(chosen), len(others) - 1)
            chance = count * math.log(MOVED_CHANCE / (1 - MOVED_CHANCE))
            chi2 = off @ torch.linalg.solve(covariance, off)
            density = -0.5 * float(chi2 + torch.linalg.slogdet(covariance)[1])
            scores.append(log_mass + chance + density)
    weight = torch.softmax(torch.tensor(scores), 0).view(len(means), len(sets))
    best = int(weight.sum(1).argmax())
    each = list(zip(weight.sum(0).tolist(), sets))
    chances = [sum(w for w, chosen in each if view in chosen) for view in range(V)]
    chances = (math.nan if v in known.unknown else chance for v, chance in enumerate(chances))
    return tuple(chances), means[best]


def _modes(rig: RigSolution) -> list[tuple[float, Views]]:
    """Log mass of each mode of one rig, and samples (M, V, ...) of its Laplace law, as wide as
    errors that go together ask for."""
    modes, at = rig.modes, rig.evidence.expansions
    K = modes.log_mass.shape[1]
    normal = torch.randn(
        NUM_SAMPLES, K, modes.mean.shape[-1], generator=torch.Generator().manual_seed(0)
    )
    away = (modes.chol[0] / INFLATION**0.5 @ normal.to(modes.mean).unsqueeze(-1)).squeeze(-1)
    shape = (modes.wider[0] @ away[..., :-1, None]).squeeze(-1) + modes.shift[0]
    away = torch.cat([shape, torch.zeros_like(away[..., -1:])], -1)  # at the mode's noise
    views = cameras_of(modes.mean[0] + away, at)
    mass = modes.log_mass[0]
    return [
        (float(mass[k]), take(views, (slice(None), k))) for k in range(K) if torch.isfinite(mass[k])
    ]


def _law(known: _Known, R: Tensor, t: Tensor, free: Sequence[int]) -> PosePrior | None:
    """What is known of a rig in view 0's frame, of which some cameras are anywhere.

    Args:
        R, t: (V, 3, 3), (V, 3) mm where they were found: there free ones are expected, and the
            others as a whole where view 0 is free.
    """
    held = [view for view in range(len(R)) if view not in free]
    if len(held) < 2:
        return None
    base = held[0]  # 0, where it is held
    turn = known.R[base].mT @ R[base]
    mean_R = known.R @ turn
    shift = t[base] - known.t[base]  # in the frame of the base
    mean_t = known.t + (known.R @ (known.R[base].mT @ shift)[:, None])[..., 0]
    free = list(free)
    mean_R, mean_t = mean_R.clone(), mean_t.clone()
    mean_R[free], mean_t[free] = R[free], t[free]
    if known.covariance is None:
        covariance = sum(_move(mean_R, mean_t, view, known.std[view]) for view in held)
    else:
        covariance = known.covariance
    size = torch.nn.functional.pad(mean_t[1:], (3, 0)).flatten()
    scale_std = min(known.scale_std, 10.0)  # more than any rig
    covariance = covariance + scale_std**2 * size[:, None] * size
    covariance = covariance + sum(_move(mean_R, mean_t, view, FREE_STD) for view in free)
    least = size.new_tensor(LEAST_STD).repeat_interleave(3).square().repeat(len(R) - 1)
    return PosePrior(mean_R, mean_t, torch.linalg.inv(covariance + torch.diag(least)))


def _move(R: Tensor, t: Tensor, view: int, std) -> Tensor:
    """Covariance (P, P) of the differences where one camera turns and moves about its own place.

    Args:
        std: of rotation and place, (2,), or of each axis, (6,).
    """
    std = torch.as_tensor(std).to(t)
    std = std.repeat_interleave(3) if len(std) == 2 else std
    V = len(R)
    slope = t.new_zeros(V - 1, 6, 6)
    if view:
        slope[view - 1] = torch.eye(6).to(t)
        slope[view - 1, 3:, :3] = -skew(t[view])
    else:  # all others move against it
        slope[:, :3, :3] = slope[:, 3:, 3:] = -R[1:]
    slope = slope.flatten(0, 1) * std
    return slope @ slope.mT
