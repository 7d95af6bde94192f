"""The rig posterior of a stream: bounded memory, constant cost a frame.

The filter keeps the frames that say most about the cameras, at most ``max_frames``, and solves the
rig from them again whenever they say enough more than at the last time; the last cameras are then
one of the starts. The posterior is always that of the kept frames and of nothing else, so that no
frame counts twice, and a stream ends where `ptri.estimate_rig` ends on the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ptri.geometry.robust import robust_triangulation
from ptri.posterior.sampling import posterior_mean
from ptri.rig.check import RigInput, check_input, check_numbers, known_joints
from ptri.rig.estimate import RigEstimate, Solved, find_model, solve_cameras, with_joints
from ptri.rig.frames import (
    coordinates,
    greedy,
    information,
    least_informative,
    total_log_det,
    usable_frames,
)
from ptri.rig.scale import KnownLength, known_length
from ptri.skeleton import Skeleton, find_skeleton
from ptri.structures import Cameras, Keypoints

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
        K,
        *,
        skeleton: str | Sequence[str] | Skeleton = "h36m17",
        num_samples: int = 512,
        num_iterations: int = 4,
        scale: Mapping[str, object] | None = None,
        children: float = 0.0,
        seed: int = 0,
        device: torch.device | str | None = None,
        max_frames: int = 50,
        model: nn.Module | str | Path | None = None,
    ) -> None:
        """
        Args:
            K: (V, 3, 3) px.
            max_frames: frames kept; memory and the longest update grow with it.
            skeleton, num_samples, num_iterations, scale, children, seed, device, model: as in
                `ptri.estimate_rig`.

        Raises:
            ValueError: as `ptri.estimate_rig`.
        """
        self._options, self._max_frames, self._seed = check_numbers(
            num_samples, num_iterations, children, max_frames, seed
        )
        self._K, self._skeleton, self._device, self._scale = K, skeleton, device, scale
        self._model = model
        self._known: KnownLength | None = None
        self._kept: Keypoints | None = None  # (N, V, J, ...) the frames that say most
        self._when = torch.zeros(0, dtype=torch.int64)  # (N,) their numbers
        self._solved: Solved | None = None
        self._solved_from: tuple[Keypoints, Tensor] | None = None
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
        given = self._check(xy, confidence, covariance)
        self._keep(given)
        if self._is_news(given.K):
            self._solve(given.K)
        solved = self._solved._replace(frames=self._solved_from[1].tolist())
        return with_joints(self._model, solved, given, same_frames=False)

    def _check(self, xy, confidence, covariance) -> RigInput:
        single = getattr(xy, "ndim", 0) == 3
        parts = (xy, confidence, covariance)
        if single:
            parts = (None if part is None else part[None] for part in parts)
        xy, confidence, covariance = parts
        given = check_input(xy, self._K, confidence, covariance, self._skeleton, self._device)
        if self._solved is None:
            self._known = known_length(self._scale, len(given.K))
            self._model = find_model(self._model, given.K.device)
        return given

    def _keep(self, given: RigInput) -> None:
        """Takes new frames in and drops those that say least."""
        good = usable_frames(given.keypoints).nonzero()[:, 0]
        new = Keypoints(*(part[good] for part in given.keypoints))
        when = self._count + good.cpu()
        self._count += len(given.keypoints.xy)
        if len(good) > self._max_frames:
            each = information(new, given.K, coordinates(new, given.K))
            best = greedy(each, when.to(each.device), self._max_frames).sort().values
            new, when = Keypoints(*(part[best] for part in new)), when[best.cpu()]
        if self._kept is not None:
            new = Keypoints(*(torch.cat(pair) for pair in zip(self._kept, new)))
            when = torch.cat([self._when, when])
        if len(when) > self._max_frames:
            each = information(new, given.K, coordinates(new, given.K))
            rows = torch.arange(len(when))
            while len(rows) > self._max_frames:
                worst = least_informative(each[rows], when[rows].to(each.device))
                rows = torch.cat([rows[:worst], rows[worst + 1 :]])
            new, when = Keypoints(*(part[rows] for part in new)), when[rows]
        self._kept, self._when = new, when

    def _is_news(self, K: Tensor) -> bool:
        """Whether the kept frames say so much more than those of the last solution."""
        if self._solved is None:
            return True
        before, when = self._solved_from
        if when.equal(self._when):
            return False
        if len(self._when) >= 2 * len(when):  # the first few frames
            return True
        frame = coordinates(self._kept, K)
        now = total_log_det(information(self._kept, K, frame), self._when.to(K.device))
        then = total_log_det(information(before, K, frame), when.to(K.device))
        pairs = len(K) * (len(K) - 1) // 2
        return now - then > 9 * pairs * math.log(GROWTH)

    def _solve(self, K: Tensor) -> None:
        kept = RigInput(self._kept, K, find_skeleton(self._skeleton))
        start = None if self._solved is None else _start(kept, self._solved)
        self._solved = solve_cameras(
            self._model, kept, self._options, self._seed, self._max_frames, self._known,
            start=start, times=self._when,
        )  # fmt: skip
        self._solved_from = (self._kept, self._when)


def _start(kept: RigInput, solved: Solved) -> tuple[Cameras, Tensor] | None:
    """The last cameras (1, V, ...) and the 17 joints (1, N, 17, 3) under them, to start from."""
    if not solved.frames or not len(kept.keypoints.xy):
        return None
    R, t = posterior_mean(solved.posterior)
    factor = solved.scale.factor
    t = t / (1.0 if math.isnan(factor) else factor)  # the scale of the bones
    known = Keypoints(*(part[None] for part in known_joints(kept)))
    rig = Cameras(kept.K.expand(1, len(kept.keypoints.xy), -1, -1, -1), R, t)
    joints = robust_triangulation(known, rig)[0].joints3d
    middle = joints.nanmedian(dim=2, keepdim=True).values
    middle = torch.where(torch.isnan(middle), middle.nanmedian(dim=1, keepdim=True).values, middle)
    joints = torch.where(torch.isnan(joints), middle, joints)
    if not bool(torch.isfinite(joints).all()):
        return None
    return Cameras(kept.K[None], R, t), joints
