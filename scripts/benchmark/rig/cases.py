"""Generated cases with known truth: people, rigs, and keypoints with errors of a known kind.

Errors, in px of a 1000 px image (scaled with the longer side of others):

* gaussian: independent, with standard deviation ``noise`` per coordinate; with ``tails`` of so many
  degrees of freedom Student's t of that scale, drawn for a whole point;
* detector: the same variance, but AR(1) over frames (correlation 0.9 at 50 Hz), and an offset of
  every joint in every view that never changes (standard deviation 5 px per coordinate).

On top of either, a share of gross outliers (uniform in the person's box, enlarged by half) and 10 %
missing points. Stated to the methods: circular covariances of 3 px, whatever the true noise, and
confidence 0.9.

Frames are ``fps`` apart; at ``fps = 0`` they are minutes apart: each frame is another posture at
another place within +-1 m of the middle, of the same person. That is the default for independent
errors (as in the stated bounds); detector-like errors come at 50 Hz, where frames are most alike.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.rigs import draw_rigs
from ptri.geometry.cameras import project, to_reference, transform
from ptri.people.bodies import sample_bone_lengths, sample_clips
from ptri.people.draws import Draws, ar1
from ptri.people.mocap import load_mocap, relength, sample_mocap
from ptri.people.motions import KINDS
from ptri.people.rigs import Rig
from ptri.structures import Cameras, Keypoints, tree_map

BIAS = 5.0  # px, standard deviation per coordinate of the fixed offsets
CORRELATION, CORRELATION_FPS = 0.9, 50.0  # of detector-like errors, between frames so far apart
CONFIDENCE = 0.9  # of every point seen
_AREA = 1000.0  # mm, people stand within +- this of the middle, in x and y
_BOX = 1.5  # side of the outliers' box over the person's
_FLOOR = 75.0  # mm, height of the lowest joint


class Cell(NamedTuple):
    """One setting; its cases differ by their index only."""

    family: str
    num_frames: int  # of each person
    noise: float = 3.0  # px
    outliers: float = 0.05  # share of the seen points
    missing: float = 0.1  # share of all points
    errors: str = "gaussian"  # or "detector"
    fps: float | None = None  # None: the kind's default
    views: int | None = None  # None: the family's own number
    tails: int = 0  # degrees of freedom of Student's t; 0: Gaussian
    persons: tuple[float, ...] = (1.0,)  # how large each is drawn; frames are one's after another's

    @property
    def frames_per_second(self) -> float:
        default = CORRELATION_FPS if self.errors == "detector" else 0.0
        return default if self.fps is None else self.fps

    @property
    def name(self) -> str:
        spacing = "" if self.fps is None else f"-{self.fps:g}fps"
        views = "" if self.views is None else f"-V{self.views}"
        tails = f"-t{self.tails}" if self.tails else ""
        tails += f"-{len(self.persons)}persons" if len(self.persons) > 1 else ""
        return (
            f"{self.family}{views}-T{self.num_frames}-{self.errors}-{self.noise:g}px"
            f"-{100 * self.outliers:g}out-{100 * self.missing:g}miss{spacing}{tails}"
        )


class People(NamedTuple):
    """Where poses and bodies come from."""

    mocap: str | None = None  # .npz as `ptri.people.mocap` reads it (held-out trials)
    bone_spread: float = 0.03  # relative, bones beyond the body statistics, equal left and right


DEFAULT_PEOPLE = People()


class Cases(NamedTuple):
    """B cases of a cell; float64, reference frame of view 0."""

    keypoints: Keypoints  # (B, T, V, J, ...) px, what methods are given ...
    K: Tensor  # (B, T, V, 3, 3) px ... together with these
    cameras: Cameras  # truth (B, V, ...), t in mm
    joints3d: Tensor  # (B, T, J, 3) mm, truth
    sigma: Tensor  # (B, V) px, true standard deviation of the noise per coordinate
    clean: Tensor  # (B, T, V, J) bool, seen and no gross outlier


def make_cases(
    cell: Cell,
    count: int,
    seed: int = 0,
    people: People = DEFAULT_PEOPLE,
    first: int = 0,
    stated: float | None = 3.0,
    rig: Rig | None = None,
) -> Cases:
    """Cases ``first`` to ``first + count - 1`` of a cell; equal arguments give equal bits.

    Args:
        seed: of everything. Case i depends on (seed, family, i) and the cell's settings only;
            people and rigs do not depend on noise, outliers and the kind of errors.
        stated: px, the standard deviation that methods are told; None: the true one.
        rig: of every case, world with z up; None: drawn from the family.
    """
    family = zlib.crc32(cell.family.encode())
    seeds = [(seed, family, first + i) for i in range(count)]
    scene, noise = (Draws.from_seeds([(*key, stream) for key in seeds]) for stream in range(2))
    joints = _people(scene, seeds, cell, people)
    rig = draw_rigs(cell.family, scene, joints, cell.views) if rig is None else rig
    for number, size in enumerate(cell.persons[1:], start=3):  # streams 0 to 2 have their uses
        own = [(*key, number) for key in seeds]
        other = _people(Draws.from_seeds(own), own, cell, people)
        joints = torch.cat([joints, size * other], dim=1)
    world, joints = tree_map(torch.Tensor.double, (rig.cameras, joints))
    clean_xy = project(joints, tree_map(lambda part: part.unsqueeze(1), world))  # (B, T, V, J, 2)
    size = rig.size.double()
    unit = size.amax(-1) / 1000  # (B, V) px of the image per px at 1000 px
    xy, wild, missing = _observe(noise, cell, clean_xy, unit)
    inside = ((clean_xy >= -0.5) & (clean_xy <= size[:, None, :, None] - 0.5)).all(-1)
    seen = inside & ~missing
    sigma = cell.noise * unit
    said = sigma if stated is None else stated * unit
    covariance = said[:, None, :, None, None, None].square() * torch.eye(2, dtype=torch.float64)
    B, T, V, J = seen.shape
    keypoints = Keypoints(
        torch.where(seen.unsqueeze(-1), xy, torch.nan),
        covariance.expand(B, T, V, J, 2, 2).contiguous(),
        CONFIDENCE * seen.double(),
    )
    joints = transform(joints, world.R[:, :1], world.t[:, :1])
    reference = to_reference(world)
    reference.R[:, 0], reference.t[:, 0] = torch.eye(3, dtype=torch.float64), 0.0  # exactly
    K = world.K.unsqueeze(1).expand(-1, T, -1, -1, -1).contiguous()
    return Cases(keypoints, K, reference, joints, sigma, seen & ~wild)


def _people(draws: Draws, seeds: list[tuple[int, ...]], cell: Cell, people: People) -> Tensor:
    """Joints (B, T, 17, 3) mm, world."""
    B, T, fps = draws.batch, cell.num_frames, cell.frames_per_second
    if fps > 0:
        clip = sample_clips(draws, T, fps, KINDS, people.bone_spread)
        joints, place = clip.joints3d, _places(draws)[:, None, None]
        if people.mocap is not None:
            mocap = load_mocap(people.mocap, "held_out")
            joints = sample_mocap(draws, mocap, T, fps, clip.bone_lengths)
        return joints + place
    lengths = sample_bone_lengths(draws, people.bone_spread).repeat_interleave(T, 0)  # (B T, 16)
    draws = Draws.from_seeds([(*seed, 2, frame) for seed in seeds for frame in range(T)])
    if people.mocap is not None:
        joints = sample_mocap(draws, load_mocap(people.mocap, "held_out"), 1, 30.0, lengths)
    else:
        joints = sample_clips(draws, 1, 10.0, KINDS).joints3d
        joints = relength(joints, lengths, torch.zeros(B * T, 1))
        joints[..., 2] += _FLOOR - joints[..., 2].amin(-1, keepdim=True)
    joints = joints + _places(draws)[:, None, None]
    return joints.reshape(B, T, *joints.shape[2:])


def _places(draws: Draws) -> Tensor:
    """Uniform places (B, 3) mm in a square on the floor."""
    place = _AREA * draws.uniform(2, low=-1.0, high=1.0)
    return torch.nn.functional.pad(place, (0, 1))


def _observe(
    draws: Draws, cell: Cell, clean: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints (B, T, V, J, 2) px, which are gross outliers, which are missing (B, T, V, J)."""
    _, T, V, J, _ = clean.shape
    white, fixed = draws.normal(T, V, J, 2).double(), draws.normal(1, V, J, 2).double()
    chance, anywhere = draws.uniform(T, V, J), draws.uniform(T, V, J, 2).double()
    missing = draws.uniform(T, V, J) < cell.missing
    error = cell.noise * white
    if cell.tails:  # a normal over the root of chi-square over its degrees of freedom
        spread = draws.normal(T, V, J, cell.tails).double().square().mean(-1, keepdim=True)
        error = error / spread.sqrt()
    if cell.errors == "detector":
        error = cell.noise * ar1(white, correlation(cell)) + BIAS * fixed
    xy = clean + unit[:, None, :, None, None] * error
    low, high = clean.amin(-2, keepdim=True), clean.amax(-2, keepdim=True)
    middle, side = (low + high) / 2, _BOX * (high - low)
    wild = chance < cell.outliers
    return torch.where(wild.unsqueeze(-1), middle + side * (anywhere - 0.5), xy), wild, missing


def correlation(cell: Cell) -> float:
    """Of detector-like errors, between a cell's neighbouring frames."""
    fps = cell.frames_per_second
    return CORRELATION ** (CORRELATION_FPS / fps) if fps > 0 else 0.0
