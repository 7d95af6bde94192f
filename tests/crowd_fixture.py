"""Several generated people before one rig, seen by a detector of everybody, in random order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from ptri import config
from ptri.people.detections import simulate_detections
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.people.rigs import FAMILY_NAMES, sample_rigs
from ptri.people.scenes import USUAL, people
from ptri.recordings.candidates import Candidates

LOST = 0.03  # of the people in view that are not found


class Crowd(NamedTuple):
    """What P people look like in T frames of V views."""

    candidates: Candidates  # N sightings
    who: np.ndarray  # (N,) number of the person
    times: np.ndarray  # (T,) s
    K: np.ndarray  # (V, 3, 3) px


def make_crowd(
    seed: int,
    num_people: int,
    num_frames: int = 40,
    fps: float = 10.0,
    apart: float = 1200.0,
    num_views: int = 4,
) -> Crowd:
    """People who move about places on a circle, as far apart (mm) as asked for."""
    options = config.load(None, ["run.name=crowd"]).generated
    draws = Draws.from_seeds([(seed, 77, p) for p in range(num_people)])
    numbers = USUAL._replace(fps=fps, area=300.0)
    joints = people(draws, options, num_frames, "train", numbers)  # (P, T, 17, 3)
    rng = np.random.default_rng(seed)
    radius = apart / 2 / math.sin(math.pi / num_people) if num_people > 1 else 0.0
    angle = rng.uniform(0, 2 * math.pi) + 2 * math.pi * torch.arange(num_people) / num_people
    place = radius * torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
    joints = joints + place[:, None, None]
    family = torch.tensor([rng.integers(len(FAMILY_NAMES))])
    rig = sample_rigs(
        Draws.from_seeds([(seed, 78)]), family, joints.reshape(1, -1, 17, 3), num_views
    )
    seen = [
        simulate_detections(
            Draws.from_seeds([(seed, 79, p)]), ErrorModel(fps=fps), own[None], rig.cameras, rig.size
        ).keypoints
        for p, own in enumerate(joints)
    ]
    xy, covariance, confidence = (
        torch.cat(part).double().numpy() for part in zip(*seen)
    )  # (P, T, V, ...)
    there = (np.isfinite(xy).all(-1).sum(-1) >= 4) & (rng.random(xy.shape[:3]) >= LOST)
    who, row, view = np.nonzero(there)
    mixed = rng.permutation(len(row))
    who, row, view = (part[mixed] for part in (who, row, view))
    where = who, row, view
    unknown = np.zeros((len(row), 4)), np.full((len(row), 6), np.nan), np.zeros(len(row), bool)
    sightings = Candidates(row, view, xy[where], covariance[where], confidence[where], *unknown)
    times = np.arange(num_frames) / fps
    return Crowd(sightings.surely(0.1), who, times, rig.cameras.K[0].double().numpy())
