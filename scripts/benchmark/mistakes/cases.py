"""Generated people before rigs, with a detector's errors, long enough to be spoiled in time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config import Config
from ptri.people.draws import Draws
from ptri.people.rigs import family_indices, sample_rigs
from ptri.people.scenes import USUAL, errors_of, people, seen_by

NUM_FRAMES = 16  # that a rig is solved from
LONGER = 32  # frames that follow these, for what comes too late


class Case(NamedTuple):
    """One rig of V views, as `ptri.estimate_rig` takes it, and the truth."""

    xy: Tensor  # (T, V, 17, 2) px, NaN = not seen; float64
    K: Tensor  # (V, 3, 3) px
    confidence: Tensor  # (T, V, 17)
    R: Tensor  # (V, 3, 3), relative to view 0
    later: tuple[Tensor, Tensor]  # xy and confidence of NUM_FRAMES + LONGER frames
    other: tuple[Tensor, Tensor]  # of another person, who moves before the same rig
    seed: int
    size: Tensor | None = None  # (V, 2) px, where it is told


def make_case(config: Config, seed: int, num_views: int, family: str = "ring") -> Case:
    """The case of a seed: another rig, other people."""
    options = config.generated
    draws = Draws.from_seeds([(seed, num_views, 10)])
    length = NUM_FRAMES + LONGER
    person, other = (people(draws, options, length, "train", USUAL) for _ in range(2))
    index = family_indices([family])
    rig = sample_rigs(draws, index, torch.cat([person, other], 1), num_views, 0.0)
    scenes = [seen_by(draws, options, errors_of(options), p, rig, index) for p in (person, other)]
    seen = [
        (scene.keypoints.xy[0].double(), scene.keypoints.confidence[0].double()) for scene in scenes
    ]
    xy, confidence = (value[:NUM_FRAMES] for value in seen[0])
    K, R = scenes[0].K[0, 0].double(), scenes[0].cameras.R[0].double()
    return Case(xy, K, confidence, R, *seen, seed)
