"""What to film for cameras that are known better: how much longer, where to walk, what again.

Predicted from the frames at hand, by the law that made the region of the cameras: keypoints that
err together tell ``A (A + E)^-1 A`` (`ptri.posterior.width`). More of the same makes A larger, and
E by as much again, so that little is won where errors last; at another place the same postures tell
other things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.triangulation import reproject
from ptri.posterior.equations import Bundle, noise_unit
from ptri.posterior.moments import rotation_covariance
from ptri.posterior.sampling import RigSolution
from ptri.posterior.width import Together, told_together
from ptri.rig.check import RigInput
from ptri.rig.detector import NUM_JOINTS
from ptri.rig.result import Solved
from ptri.skeleton import H36M17
from ptri.structures import Observations, evenly_spread, take

TARGET_DEG = 1.0
SEEN = 6  # keypoints of a person who is seen
POSTURES = 8  # frames whose joints stand for what the person does
CONFIDENCE = 0.9  # of keypoints that are not there yet
REACH, STEP = 3000.0, 750.0  # mm: places are looked at so far around, so far apart
NEAR = 1000.0  # mm from a camera: too near to be seen whole
MUCH = 0.7  # of the frames, shared by two views
MOST = 64.0  # times as long: more is no advice
UPPER, LOWER = ("thorax", "left_shoulder", "right_shoulder"), ("left_foot", "right_foot")


class Advice(NamedTuple):
    """What to do for cameras of V views that are known better."""

    rotation_deg: float  # how well the worst one is turned as it was found, all axes together ...
    view: int  # ... and which that is
    target_deg: float  # how well it should be known
    # So many times the frames at hand make it so, if the person goes on in the same way; inf: not
    # at all, because errors last.
    longer: float
    same_deg: float  # what twice the frames make of it in the same way, ...
    elsewhere_deg: float  # ... and where the other half is at the best place:
    place: tuple[float, float, float]  # mm, view 0's frame, of the person's middle
    pixels: tuple[tuple[float, float] | None, ...]  # of it in each picture; None: not in it
    shared: tuple[tuple[float, ...], ...]  # (V, V) share of the frames in which both see somebody
    again: int | None  # a view that does not fit the others: look at its camera, film again

    def words(self, names: Sequence[str] | None = None) -> str:
        """The advice in words; ``names`` of the views, None: "view 0" and so on."""
        names = names or [f"view {v}" for v in range(len(self.shared))]
        parts = []
        if self.again is not None:
            parts.append(f"look at the camera of {names[self.again]}, and film again")
        count = len(self.shared)
        share, i, j = min((self.shared[i][j], i, j) for j in range(count) for i in range(j))
        if share < MUCH:
            parts.append(
                f"{names[i]} and {names[j]} see somebody together in {share:.0%} of the frames"
            )
        now = f"the rotation of {names[self.view]} is known to {self.rotation_deg:.2g} deg"
        if self.rotation_deg <= self.target_deg:
            return "; ".join([*parts, now])
        same = "more of the same hardly helps"
        if self.longer < MOST:
            same = f"{self.longer:.2g} times as much of the same gives {self.target_deg:g} deg"
        parts.append(f"{now}; {same}")
        if self.elsewhere_deg < 0.9 * self.same_deg:
            seen = [
                f"{at[0]:.0f}, {at[1]:.0f} px of {name}"
                for name, at in zip(names, self.pixels)
                if at is not None
            ]
            parts.append(
                f"as much again about another place gives {self.elsewhere_deg:.2g} deg: there the "
                f"person's middle is at {', '.join(seen)}"
            )
        return "; ".join(parts)


@torch.no_grad()
def advise(
    solved: Solved, given: RigInput, size: Tensor | None = None, target_deg: float = TARGET_DEG
) -> Advice | None:
    """What to film for cameras that are known better; None: nothing was solved.

    Args:
        given: the keypoints of the rig.
        size: (V, 2) px of the pictures; None: twice the principal points.
    """
    if solved.rig is None:
        return None
    rig, K = solved.rig, given.K[0]
    size = 2 * K[:, :2, 2] + 1 if size is None else size.to(K)
    seen = torch.isfinite(given.keypoints.xy).all(-1).sum(-1) >= SEEN  # (T, V)
    shared = (seen.double().mT @ seen.double() / len(seen)).tolist()
    turned = rotation_covariance(solved.posterior)[0].diagonal(dim1=-2, dim2=-1).sum(-1)
    now, view = max((math.degrees(math.sqrt(x)), v) for v, x in enumerate(turned.tolist()))
    scene = _Scene.of(rig, K, size)
    told, excess = scene.of_frames
    before = _turned(told, excess)
    if not math.isfinite(before):
        return None
    # The region is wider still where views disagree: by as much, it is taken, ever after.
    factor = now / before
    longer = 1.0
    while longer < MOST and factor * _turned(told * longer, excess * longer**2) > target_deg:
        longer *= 1.1
    longer = longer if longer < MOST else math.inf
    base, (A, E) = scene.middle, scene.few(scene.middle)
    doubled = _turned(2 * A, 4 * E)
    best, place = doubled, base
    for other in scene.places():
        value = _turned(*scene.few(other))
        best, place = min((best, place), (value, other), key=lambda one: one[0])
    same = factor * _turned(2 * told, 4 * excess)
    pixels, inside = scene.pixels(place)
    shown = [tuple(at) if there else None for at, there in zip(pixels.tolist(), inside.tolist())]
    again = None if solved.verdict.accepted else solved.verdict.view
    return Advice(
        now,
        view,
        target_deg,
        longer,
        same,
        same * best / doubled,
        tuple(place.tolist()),
        tuple(shown),
        tuple(map(tuple, shared)),
        again,
    )


def _turned(information: Tensor, excess: Tensor) -> float:
    """Standard deviation (deg) of the worst rotation, of (D, D) for one rig."""
    P = information.shape[0] // 6 * 6  # poses come last
    inverse = torch.linalg.inv_ex(information)[0]
    covariance = inverse @ (information + excess) @ inverse
    variance = covariance.diagonal()[-P:].view(-1, 6)[:, :3].sum(1).amax()
    return math.degrees(math.sqrt(float(variance))) if variance > 0 else math.inf


class _Scene(NamedTuple):
    """A solved rig, and what it would be told by frames that were not filmed."""

    rig: RigSolution
    bundle: Bundle  # (1, ...) the best mode
    together: Together  # of it
    unit: Tensor  # (V,) noise of a view's keypoints, normalised, times the person's distance in mm
    K: Tensor  # (V, 3, 3) px
    size: Tensor  # (V, 2) px

    @classmethod
    def of(cls, rig: RigSolution, K: Tensor, size: Tensor) -> _Scene:
        best, body = rig.evidence.best, rig.evidence.body
        joints = best.joints.mT
        bundle = Bundle(*best.views, joints, best.shared[:, : len(body.mean)])
        together = take(rig.modes.together, slice(0, 1))
        depth = (best.R[0] @ joints[0].mean((0, 1)))[:, 2] + best.t[0, :, 2]
        unit = noise_unit(rig.evidence.observations)[0]
        usual = torch.where(unit > 0, unit, torch.nan).nanmedian(0).values
        usual = torch.where(usual.isnan(), usual.nanmedian(), usual)
        return cls(rig, bundle, together, usual * depth, K, size)

    @property
    def of_frames(self) -> tuple[Tensor, Tensor]:
        """Information and excess (D, D) of the frames at hand."""
        errors = self.rig.evidence.best.errors
        observations, body = self.rig.evidence.observations, self.rig.evidence.body
        told = told_together(observations, self.bundle, errors, body, self.together)
        return told[0][0], told[1][0]

    @property
    def middle(self) -> Tensor:
        """The person's usual middle (3,) mm."""
        return self.bundle.joints[0].median(1).values.median(0).values

    def few(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Information and excess (D, D) of a few postures where they were and at a place (3,)."""
        rows = evenly_spread(self.bundle.joints.shape[1], POSTURES, place.device)
        joints = self.bundle.joints[:, rows]
        there = joints - joints.median(2, keepdim=True).values + place
        joints = torch.cat([joints, there], dim=1)
        bundle = self.bundle._replace(joints=joints)
        observations = self._seen(joints, rows.repeat(2))
        errors = self.rig.evidence.best.errors
        errors = errors._replace(bias=errors.bias[:, :, :0], num_bias=0 * errors.num_bias)
        body = self.rig.evidence.body
        told = told_together(observations, bundle, errors, body, self.together)
        return told[0][0], told[1][0]

    def _seen(self, joints: Tensor, rows: Tensor) -> Observations:
        """Keypoints (1, T, V, J) of joints (1, T, J, 3) mm, as exact and as well known as those at
        hand would be."""
        V, T, J = len(self.unit), *joints.shape[1:3]
        like = self.rig.evidence.observations
        empty = joints.new_zeros(1, T, V, J, 2)
        blank = Observations(
            empty,
            empty.unsqueeze(-1).expand(*empty.shape, 2),
            empty[..., 0],
            joints.new_ones(1, T, J),
            like.persons[:, rows],
        )
        at = reproject(joints[None], blank, *take(self.bundle.views.projection, None))
        pixels = at.error[0] * self.K.diagonal(dim1=-2, dim2=-1)[None, None, :, None, :2]
        pixels = pixels + self.K[:, None, :2, 2]
        inside = (pixels >= 0) & (pixels <= self.size[:, None] - 1)
        there = inside.all(-1) & (at.depth[0] > NEAR / 2)
        there = there & (there.sum(2, keepdim=True) >= 2)
        unit = self.unit[:, None] / at.depth[0].clamp_min(1.0)
        eye = torch.eye(2).to(joints)
        information = (there / unit.square())[..., None, None] * eye
        held = there.any(2).to(joints)
        return blank._replace(
            xy=at.error[0], information=information, inlier=CONFIDENCE * there.to(joints), held=held
        )

    def pixels(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Where a place (3,) is in the pictures (V, 2) px, and whether it is in them (V,)."""
        camera = (self.bundle.R[0] @ place) + self.bundle.t[0]
        focal = self.K.diagonal(dim1=-2, dim2=-1)[:, :2]
        if self.bundle.log_focal.shape[1]:
            focal = focal * self.bundle.log_focal[0].exp()[:, None]
        pixels = camera[:, :2] / camera[:, 2:].clamp_min(1.0) * focal + self.K[:, :2, 2]
        inside = (pixels >= 0) & (pixels <= self.size - 1)
        return pixels, inside.all(-1) & (camera[:, 2] > NEAR / 2)

    def places(self) -> list[Tensor]:
        """Other places on the floor whose middle two views see, no camera too near."""
        joints = self.bundle.joints[0, :, :NUM_JOINTS]
        upper, lower = (
            joints[:, [H36M17.joints.index(name) for name in names]].mean((0, 1))
            for names in (UPPER, LOWER)
        )
        up = torch.nn.functional.normalize(upper - lower, dim=0)
        first = torch.eye(3).to(up)[int(up.abs().argmin())]
        first = torch.nn.functional.normalize(first - (first @ up) * up, dim=0)
        axes = torch.stack([first, torch.linalg.cross(up, first)])
        line = torch.arange(-REACH, REACH + 1, STEP).to(up)
        centres = -(self.bundle.R[0].mT @ self.bundle.t[0].unsqueeze(-1)).squeeze(-1)
        places = self.middle + torch.cartesian_prod(line, line) @ axes
        return [
            place
            for place in places
            if int(self.pixels(place)[1].sum()) >= 2
            and float((centres - place).norm(dim=-1).amin()) > NEAR
        ]
