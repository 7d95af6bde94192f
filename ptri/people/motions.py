"""What people do: tables of postures and arm actions, and smooth joint angles drawn from them.

A clip blends back and forth between two draws from its motion's tables, with sway on top, gait
cycles where the motion has them, and tempo and pauses that vary. Everything is a function of
continuous time, so any frame rate gives the same motion.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.people.articulation import (
    ANGLES,
    INDEX,
    LIMBS,
    both_sides,
    limit_angles,
    limits,
    mirror_angles,
)
from ptri.people.draws import Draws

# Tables in degrees: angle -> (mean, spread between clips, sway within a clip). A limb's angle
# without a side means both limbs, drawn independently.
_STAND = {
    "root_pitch": (0, 3, 1), "root_roll": (0, 2, 1),
    "spine_flex": (3, 6, 2), "spine_side": (0, 4, 2), "spine_twist": (0, 4, 3),
    "chest_flex": (0, 6, 2), "chest_side": (0, 4, 2), "chest_twist": (0, 7, 5),
    "neck_flex": (5, 10, 4), "neck_side": (0, 5, 3), "neck_twist": (0, 12, 9),
    "head_flex": (0, 8, 5), "head_side": (0, 4, 3), "head_twist": (0, 10, 8),
    "clavicle_up": (4, 5, 2), "clavicle_forward": (0, 6, 3),
    "arm_flex": (5, 14, 5), "arm_abd": (12, 7, 3), "arm_twist": (5, 18, 6),
    "elbow_flex": (22, 16, 6), "pronation": (0, 25, 8), "wrist_flex": (0, 12, 6),
    "hip_flex": (3, 7, 2), "hip_abd": (6, 5, 1.5), "hip_twist": (6, 8, 2),
    "knee_flex": (7, 7, 3), "ankle_flex": (0, 2, 0),
}  # fmt: skip
_SIT = {
    "root_pitch": (-6, 9, 2), "spine_flex": (10, 12, 4), "chest_flex": (6, 9, 3),
    "hip_flex": (82, 10, 2), "knee_flex": (85, 18, 3), "hip_abd": (8, 9, 3),
    "hip_twist": (5, 12, 2),
}  # fmt: skip
_ALL_FOURS = {"root_pitch": (80, 10, 3), "neck_flex": (-25, 15, 5), "head_flex": (-10, 10, 4)}
POSTURES: dict[str, dict[str, tuple[float, float, float]]] = {
    "stand": {},
    "gesture": {"chest_twist": (0, 12, 8), "hip_abd": (8, 6, 2)},
    "reach": {"root_pitch": (5, 9, 3), "spine_flex": (8, 14, 6), "chest_twist": (0, 15, 8)},
    "walk": {"root_pitch": (2, 4, 1), "arm_flex": (0, 8, 2), "hip_abd": (2, 3, 1)},
    "run": {"root_pitch": (9, 5, 1), "elbow_flex": (85, 15, 5), "arm_flex": (-5, 8, 3)},
    "climb": {"root_pitch": (10, 8, 3), "hip_flex": (25, 12, 3), "knee_flex": (25, 12, 3)},
    "sit": _SIT,
    "sit_floor": {
        "root_pitch": (-10, 14, 3), "spine_flex": (18, 12, 4), "chest_flex": (10, 9, 3),
        "hip_flex": (88, 16, 3), "knee_flex": (60, 40, 5), "hip_abd": (14, 12, 3),
        "hip_twist": (15, 20, 4),
    },
    "sit_crossed": _SIT | {
        "hip_flex": (85, 10, 2), "knee_flex": (125, 10, 2), "hip_abd": (38, 8, 2),
        "hip_twist": (42, 7, 2),
    },
    "squat": {
        "root_pitch": (22, 12, 3), "spine_flex": (15, 12, 4),
        "hip_flex": (100, 15, 5), "knee_flex": (112, 20, 6), "hip_abd": (14, 9, 2),
    },
    "bend": {
        "root_pitch": (45, 20, 6), "spine_flex": (25, 12, 5), "chest_flex": (14, 10, 4),
        "neck_flex": (0, 20, 6),
        "hip_flex": (48, 20, 5), "knee_flex": (15, 18, 4),
        "arm_flex": (65, 30, 12),
    },
    "lunge": {
        "left_hip_flex": (50, 18, 5), "left_knee_flex": (60, 20, 5),
        "right_hip_flex": (-12, 8, 3), "right_knee_flex": (22, 15, 5),
    },
    "kneel_one": {
        "left_hip_flex": (85, 10, 3), "left_knee_flex": (92, 12, 3),
        "right_hip_flex": (3, 8, 3), "right_knee_flex": (95, 10, 3),
    },
    "kneel": {"hip_flex": (15, 18, 5), "knee_flex": (112, 20, 4), "root_pitch": (6, 8, 3)},
    "crawl": _ALL_FOURS | {
        "hip_flex": (85, 12, 8), "knee_flex": (88, 12, 8),
        "arm_flex": (85, 12, 8), "elbow_flex": (12, 10, 5),
    },
    "lie_back": {"root_pitch": (-86, 10, 2), "hip_flex": (20, 22, 5), "knee_flex": (32, 30, 8)},
    "lie_front": {"root_pitch": (84, 8, 2), "hip_flex": (0, 8, 3), "neck_flex": (-15, 15, 6)},
    "lie_side": {"root_roll": (84, 12, 2), "hip_flex": (35, 25, 4), "knee_flex": (50, 30, 6)},
    "dance": {
        "spine_side": (0, 10, 8), "chest_twist": (0, 14, 12), "spine_flex": (3, 11, 7),
        "hip_flex": (20, 22, 16), "hip_abd": (12, 12, 9), "hip_twist": (8, 16, 8),
        "knee_flex": (28, 24, 18),
    },
    "random": {},  # anything within the joint limits, in any orientation
}  # fmt: skip
# Arm actions, drawn for each arm: the same of these angles; None: what the posture's table says.
_ARM_ANGLES = ("arm_flex", "arm_abd", "arm_twist", "elbow_flex", "clavicle_up", "clavicle_forward")
ARMS = {
    "own": (),
    "gesture": ((32, 28, 18), (18, 22, 12), (18, 28, 15), (72, 34, 20)),
    "reach": ((80, 38, 15), (25, 38, 15), None, (24, 22, 10), None, (10, 8, 4)),
    "head": ((48, 26, 8), (18, 26, 6), (22, 25, 8), (128, 14, 7)),  # phone, food, hair
    "fold": ((35, 14, 4), (0, 10, 3), (52, 14, 5), (98, 16, 6)),
    "akimbo": ((-12, 10, 3), (44, 9, 3), (66, 12, 4), (92, 14, 5)),  # hands on the hips
    "up": ((112, 36, 12), (55, 42, 12), None, (42, 36, 14), (18, 8, 4)),
    "side": ((8, 22, 8), (85, 24, 8), None, (22, 24, 8)),
    "lap": ((28, 12, 4), (8, 9, 3), (22, 18, 5), (62, 20, 6)),
    "behind": ((-30, 12, 4), (18, 10, 3), (62, 14, 4), (70, 28, 6)),
}


class Gait(NamedTuple):
    """A cyclic motion of the legs; amplitudes relative to normal walking."""

    cadence: float  # cycles per second
    hip: float
    knee: float
    arm_deg: float
    speed: float  # mm/s at nominal amplitude


GAITS = {
    "walk": Gait(0.9, 1.0, 1.0, 20.0, 1250.0),
    "run": Gait(1.3, 1.5, 1.5, 35.0, 2600.0),
    "climb": Gait(0.6, 1.4, 1.0, 15.0, 500.0),
    "crawl": Gait(0.7, 0.5, 0.25, 15.0, 400.0),
}
# One cycle of normal walking in tenths from heel strike (deg), rounded from gait textbooks.
_HIP_CYCLE = (30, 27, 18, 8, -2, -9, -6, 9, 24, 31)
_KNEE_CYCLE = (6, 17, 18, 11, 6, 13, 36, 60, 53, 20)
# Postures that keep the centre of mass above the feet by leaning as a whole, and how strictly.
BALANCE = {
    "stand": 0.9, "gesture": 0.9, "reach": 0.9, "walk": 0.6, "squat": 0.9, "bend": 0.95,
    "lunge": 0.9, "dance": 0.7, "climb": 0.7,
}  # fmt: skip
# What the arms do in a posture: a share of clips keeps the posture's own arms.
_OWN_ARMS = {"stand": 0.3, "gesture": 0.0, "reach": 0.0, "walk": 0.6, "run": 0.85, "crawl": 1.0}
_FAVOURITE_ARMS = {"reach": ("reach", "up"), "gesture": ("gesture", "up", "side", "reach", "head")}
# Postures a clip may pass to and fro (sitting down, picking up, ...); others stay.
_PARTNERS = {
    "stand": ("stand", "gesture", "bend", "squat", "lunge"),
    "gesture": ("gesture", "stand"),
    "reach": ("reach", "stand", "bend"),
    "sit": ("sit", "sit", "stand"),
    "sit_floor": ("sit_floor", "sit_crossed", "squat"),
    "sit_crossed": ("sit_crossed", "sit_floor"),
    "squat": ("squat", "stand", "kneel_one"),
    "bend": ("bend", "stand", "squat"),
    "lunge": ("lunge", "stand"),
    "kneel_one": ("kneel_one", "kneel", "lunge"),
    "kneel": ("kneel", "kneel_one", "crawl"),
}
KINDS = tuple(POSTURES)


class _Tables(NamedTuple):
    """What clips of the K kinds are drawn from; angles in rad."""

    postures: Tensor  # (K, 3, D) mean, spread and sway
    actions: Tensor  # (A, 3, D) the same of the arm actions, NaN where they say nothing
    partners: Tensor  # (K, 60) kinds that each passes to and fro, repeated to one length
    arms: Tensor  # (K, 60) favourite arm actions, repeated alike
    own_arms: Tensor  # (K,) share of clips that keep the posture's arms
    balance: Tensor  # (K,) share of the balance that is kept
    gaits: Tensor  # (K, 5) `Gait`, zeros where there is none


@functools.cache
def _tables() -> _Tables:
    def table(entries: dict[str, tuple[float, float, float]]) -> Tensor:
        rows = torch.full((3, len(ANGLES)), math.nan)
        # An entry for one side wins over one for both limbs.
        for name in sorted(entries, key=lambda name: name not in LIMBS):
            place = both_sides(name) if name in LIMBS else [INDEX[name]]
            rows[:, place] = torch.tensor(entries[name], dtype=torch.float32)[:, None]
        return rows * (math.pi / 180)

    def repeated(names: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
        return [known.index(name) for name in (names * 60)[:60]]

    arms = tuple(ARMS)
    actions = [{n: row for n, row in zip(_ARM_ANGLES, rows) if row} for rows in ARMS.values()]
    return _Tables(
        torch.stack([table(_STAND | POSTURES[kind]) for kind in KINDS]),
        torch.stack([table(action) for action in actions]),
        torch.tensor([repeated(_PARTNERS.get(kind, (kind,)), KINDS) for kind in KINDS]),
        torch.tensor([repeated(_FAVOURITE_ARMS.get(kind, arms), arms) for kind in KINDS]),
        torch.tensor([_OWN_ARMS.get(kind, 0.3) for kind in KINDS]),
        torch.tensor([BALANCE.get(kind, 0.0) for kind in KINDS]),
        torch.tensor([GAITS.get(kind, Gait(0, 0, 0, 0, 0)) for kind in KINDS]),
    )


def sway(draws: Draws, times: Tensor, size: int, low_hz: float, high_hz: float) -> Tensor:
    """Smooth stationary signals (B, T, size), mean 0 and variance 1: sums of three sinusoids.

    Args:
        times: (B, T) s.
    """
    ratio = math.log(high_hz / low_hz)
    frequency = low_hz * torch.exp(draws.uniform(3, size) * ratio)
    phase = draws.uniform(3, size, high=2 * math.pi)
    angle = 2 * math.pi * frequency.unsqueeze(1) * times[..., None, None] + phase[:, None]
    return torch.cos(angle).sum(2) * math.sqrt(2 / 3)


def _pose(draws: Draws, kind: Tensor) -> tuple[Tensor, Tensor]:
    """A pose (B, D) drawn from the tables of each row's posture, and its sway (B, D), rad."""
    tables = _tables()
    rows = tables.postures[kind]  # (B, 3, D)
    picks = tables.arms[kind].gather(1, draws.choice(tables.arms.shape[1], 2))
    same = draws.uniform(1) < 0.5
    picks = picks * (draws.uniform(2) >= tables.own_arms[kind, None])  # 0 is "own"
    picks = torch.where(same, picks[:, :1], picks)  # (B, 2) left, right
    for arm, side in enumerate(("left_", "right_")):
        mask = torch.tensor([name.startswith(side) for name in ANGLES])
        action = tables.actions[picks[:, arm]]
        rows = torch.where(mask & ~action.isnan(), action, rows)
    pose = rows[:, 0] + rows[:, 1] * draws.normal(len(ANGLES)).clamp(-2.5, 2.5)
    # "random": anywhere within the limits, the whole body upright more often than not.
    low, high = limits()
    wild = low + (high - low) * (0.04 + 0.92 * draws.uniform(len(ANGLES)))
    tilt = torch.where(draws.uniform(1) < 0.6, 0.25, 1.0)
    wild[:, :2] = tilt * draws.uniform(2, low=-1.6, high=1.6)  # "root_pitch" and "root_roll"
    return torch.where((kind == KINDS.index("random"))[:, None], wild, pose), rows[:, 2]


@functools.cache
def _harmonics() -> Tensor:
    """Fourier coefficients (2, 4) complex of the hip and knee cycles, up to the third harmonic."""
    cycles = np.array([_HIP_CYCLE, _KNEE_CYCLE]) * math.pi / 180
    spectrum = np.fft.rfft(cycles, axis=1)[:, :4] / cycles.shape[1]
    spectrum[:, 1:] *= 2
    return torch.from_numpy(spectrum.astype(np.complex64))


def _add_gait(angles: Tensor, draws: Draws, kind: Tensor, times: Tensor) -> Tensor:
    """Adds the leg and arm cycles of the cyclic motions to (B, T, D) angles in place.

    Returns:
        (B,) nominal speed in mm/s, 0 for motions without a gait.
    """
    cadence, hip, knee, arm, speed = _tables().gaits[kind].unsqueeze(-1).unbind(1)  # (B, 1) each
    tempo, size = torch.exp(0.15 * draws.normal(1)), draws.uniform(1, low=0.55, high=1.25)
    cycle = 2 * math.pi * (cadence * tempo * times + draws.uniform(1))  # (B, T)
    phase = torch.stack([cycle, cycle + math.pi], dim=-1)  # (B, T, 2) left, right
    order = torch.arange(4)
    waves = torch.polar(torch.ones(1), order * phase.unsqueeze(-1))  # (B, T, 2, 4)
    hip_wave, knee_wave = (waves.unsqueeze(-2) * _harmonics()).sum(-1).real.unbind(-1)  # (B, T, 2)
    amplitude = (size * hip).unsqueeze(-1)
    knee_size, arm_size = torch.exp(0.2 * draws.normal(2, 1, 1)).unbind(1)  # (B, 1, 1) each
    bend = (size * knee).unsqueeze(-1) * knee_size * knee_wave  # (B, T, 2)
    swing = (size * arm).unsqueeze(-1) * arm_size * (math.pi / 180) * torch.cos(phase - 0.3)
    angles[..., both_sides("hip_flex")] += amplitude * hip_wave
    angles[..., both_sides("knee_flex")] += bend
    angles[..., both_sides("arm_flex")] -= swing
    angles[..., INDEX["chest_twist"]] += 0.12 * amplitude[..., 0] * torch.cos(cycle)
    return (speed * tempo * size).squeeze(1)


def sample_angles(draws: Draws, kind: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joint angles of clips, within their limits.

    Args:
        draws: B streams.
        kind: (B,) int64 index into `KINDS`.
        times: (T,) s.

    Returns:
        (B, T, D) rad in the order of `ANGLES`; (B, T) heading in rad, counter-clockwise from above,
        0 facing -y; (B,) share of balance to be kept.
    """
    partners, balance = _tables().partners, _tables().balance
    other = partners[kind].gather(1, draws.choice(partners.shape[1], 1)).squeeze(1)
    first, first_sway = _pose(draws, kind)
    second, second_sway = _pose(draws, other)
    tempo = torch.exp(0.25 * draws.normal(1))
    pulse = draws.uniform(1, low=0.1, high=0.35)  # Hz, pauses and bursts
    depth = draws.uniform(1, high=0.9) / (2 * math.pi * pulse)
    start = draws.uniform(1, high=60.0)
    clock = start + tempo * times  # (B, T)
    clock = clock + tempo * depth * torch.sin(2 * math.pi * pulse * clock)
    mix = torch.sigmoid(3.0 * sway(draws, clock, 1, 0.05, 0.2))  # (B, T, 1)
    moving = sway(draws, clock, len(ANGLES), 0.12, 0.9)
    amount = torch.lerp(first_sway.unsqueeze(1), second_sway.unsqueeze(1), mix)
    angles = torch.lerp(first.unsqueeze(1), second.unsqueeze(1), mix) + amount * moving
    speed = _add_gait(angles, draws, kind, start + times.expand(draws.batch, -1))
    mirrored = draws.uniform(1, 1) < 0.5
    angles = torch.where(mirrored, mirror_angles(angles), angles)
    angles = limit_angles(angles)

    # Walkers go round in circles that fit into a room; the others look about.
    radius = draws.uniform(1, low=700.0, high=2000.0)
    turning = draws.sign(1) * speed.unsqueeze(1) / radius  # rad/s
    heading = draws.uniform(1, high=2 * math.pi) + turning * times
    heading = heading + 0.3 * sway(draws, clock, 1, 0.05, 0.25).squeeze(-1)
    share = torch.lerp(balance[kind].unsqueeze(1), balance[other].unsqueeze(1), mix.squeeze(-1))
    return angles, heading, share
