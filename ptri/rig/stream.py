"""The rig posterior of a stream: bounded memory, constant cost a frame.

The filter keeps the frames that say most about the cameras, at most ``max_frames``, and solves the
rig from them again whenever they say enough more than at the last time; the last cameras are then
one of the starts. The posterior is always that of the kept frames and of nothing else, so that no
frame counts twice, and a stream ends where `ptri.estimate_rig` ends on the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ptri.geometry.triangulation import robust_triangulation
from ptri.models.weights import find_model
from ptri.posterior.moments import at_mean_focal, posterior_mean
from ptri.rig.check import RigInput, check_input, check_numbers, doubt_input, known_joints
from ptri.rig.estimate import solve_cameras
from ptri.rig.frames import (
    coordinates,
    greedy,
    information,
    log_det,
    usable_frames,
    weighted_information,
)
from ptri.rig.lenses import Lenses
from ptri.rig.result import RigEstimate, Solved, with_joints
from ptri.rig.scale import HUMAN_BONES, known_length
from ptri.skeleton import Skeleton
from ptri.structures import Cameras, Views, cat, take

# Solve again when the information about each parameter has grown by this factor, or when there are
# twice as many frames.
GROWTH = 1.25


class RigFilter:
    """Estimates static cameras and a person's joints from frames as they come.

    filter = ptri.RigFilter(K)
    for xy in stream:                    # (V, J, 2) px
        estimate = filter.update(xy)     # joints of this frame, cameras of all so far
    """

    def __init__(
        self,
        K=None,
        *,
        skeleton: str | Sequence[str] | Skeleton = "h36m17",
        num_samples: int = 512,
        num_iterations: int = 4,
        scale: Mapping[str, object] | None = None,
        size=None,
        K_std: float | Sequence[float] | None = None,
        camera: str | Sequence[str | None] | None = None,
        group: Sequence[Hashable] | None = None,
        children: float = 0.0,
        seed: int = 0,
        device: torch.device | str | None = None,
        max_frames: int = 50,
        model: nn.Module | str | Path | None = None,
    ) -> None:
        """
        Args:
            K: (V, 3, 3) px; None: not known, see ``camera`` and ``size``.
            max_frames: frames kept; memory and the longest update grow with it.
            skeleton, num_samples, num_iterations, scale, size, K_std, camera, group, children,
                seed, device, model: as in `ptri.estimate_rig`.

        Raises:
            ValueError: as `ptri.estimate_rig`.
        """
        self._numbers = check_numbers(num_samples, num_iterations, children, seed, max_frames)
        self._K, self._skeleton, self._device, self._scale = K, skeleton, device, scale
        self._model, self._lenses = model, Lenses(size, K_std, camera, group)
        self._size, self._known = size, HUMAN_BONES
        self._kept: RigInput | None = None  # N frames that say most
        self._when: Tensor | None = None  # (N,) their numbers, int64
        self._solved: Solved | None = None
        self._solved_from: tuple[RigInput, Tensor] | None = None
        self._count = 0  # frames seen

    @property
    def num_frames(self) -> int:
        """Frames seen so far."""
        return self._count

    def update(self, xy, confidence=None, covariance=None) -> RigEstimate:
        """Takes in the next frame, or a few.

        Args:
            xy: (V, J, 2) px or (T, V, J, 2), in order of time; NaN = not seen.
            confidence, covariance: as in `ptri.estimate_rig`, with xy's leading dimensions.

        Returns:
            Joints of these frames; cameras from the frames kept so far, whose numbers (the first
            update's first frame is 0) are its ``frames``.

        Raises:
            ValueError: as `ptri.estimate_rig`; the filter then stays as it was.
        """
        if getattr(xy, "ndim", 0) == 3:
            parts = (xy, confidence, covariance)
            xy, confidence, covariance = (None if p is None else p[None] for p in parts)
        kind = self._skeleton, self._device, self._lenses
        given = check_input(xy, self._K, confidence, covariance, *kind)
        if self._solved is None:
            self._known = known_length(self._scale, given.K.shape[1])
            self._model = find_model(self._model, given.K.device)
        self._keep(given)
        if self._is_news():
            start = None if self._solved is None else _start(self._kept, self._solved)
            problem = (self._model, self._kept, *self._numbers, self._known)
            doubt = doubt_input(self._kept, self._size)
            more = {"start": start, "times": self._when.cpu(), "doubt": doubt}
            # What it is made of is many times larger, and not needed any more.
            self._solved = solve_cameras(*problem, **more)._replace(rig=None)
            self._solved_from = (self._kept, self._when)
        solved = self._solved._replace(frames=self._solved_from[1].tolist(), sides=None)
        return with_joints(self._model, solved, given)

    def _keep(self, given: RigInput) -> None:
        """Takes new frames in and drops those that say least."""
        *_, max_frames = self._numbers
        good = usable_frames(given.keypoints).nonzero()[:, 0]
        new, when = take(given, good), self._count + good
        self._count += len(given.K)
        if len(when) > max_frames:
            best = greedy(information(new), when, max_frames).sort().values
            new, when = take((new, when), best)
        if self._kept is not None:
            new, when = cat([(self._kept, self._when), (new, when)])
        if len(when) > max_frames:
            each, rows = information(new), torch.arange(len(when), device=when.device)
            while len(rows) > max_frames:  # without the one that the others miss least
                weighted = weighted_information(each[rows], when[rows])
                worst = int(log_det(weighted.sum(0) - weighted).argmax())
                rows = torch.cat([rows[:worst], rows[worst + 1 :]])
            new, when = take((new, when), rows)
        self._kept, self._when = new, when

    def _is_news(self) -> bool:
        """Whether the kept frames say so much more than those of the last solution."""
        if self._solved is None:
            return True
        before, when = self._solved_from
        if when.equal(self._when):
            return False
        if len(self._when) >= 2 * len(when):  # the first few frames
            return True
        frame = coordinates(self._kept)
        now, then = (
            log_det(weighted_information(information(given, frame), at).sum(0))
            for given, at in ((self._kept, self._when), (before, when))
        )
        V = self._kept.K.shape[1]
        return float(now - then) > 9 * math.comb(V, 2) * math.log(GROWTH)


def _start(kept: RigInput, solved: Solved) -> tuple[Views, Tensor] | None:
    """The last cameras (1, V, ...) and the 17 joints (1, N, 17, 3) under them, to start from."""
    if not solved.frames or not len(kept.K):
        return None
    R, t = posterior_mean(solved.posterior)
    factor = solved.scale.factor
    t = t / (1.0 if math.isnan(factor) else factor)  # the scale of the bones
    weights = solved.posterior.log_weights.exp()
    log_focal = torch.einsum("mb,mbf->bf", weights, solved.posterior.log_focal)
    known, K = take((known_joints(kept), kept.K), None)
    K, _ = at_mean_focal(K, solved.posterior)
    joints = robust_triangulation(known, Cameras(K, R, t))[0].joints3d
    middle = joints.nanmedian(dim=2, keepdim=True).values
    middle = torch.where(torch.isnan(middle), middle.nanmedian(dim=1, keepdim=True).values, middle)
    joints = torch.where(torch.isnan(joints), middle, joints)
    return (Views(R, t, log_focal), joints) if bool(torch.isfinite(joints).all()) else None
