"""What comes of one spoiled case."""

from __future__ import annotations

from typing import NamedTuple

import torch

import ptri
from benchmark.mistakes.cases import Case
from benchmark.mistakes.table import ALL, Mistake
from ptri.errors import UserError
from ptri.evaluation.metrics import rotation_level
from ptri.geometry.rotations import rotation_angle
from ptri.models.pose_model import PoseModel

LEVEL = 0.99  # of the stated region that has to hold the error of an accepted rig


class Outcome(NamedTuple):
    """Of one spoiled rig."""

    kind: str  # refused, named, rejected (by another name), accepted, fault
    error_deg: float  # of the view that is worst, relative to view 0
    stated_deg: float  # standard deviation of its rotation, all axes together
    words: str


def outcome(case: Case, mistake: Mistake, model: PoseModel) -> Outcome:
    """Spoils a case, and gives it to `ptri.estimate_rig`."""
    num_views = len(case.K)
    view = case.seed % num_views
    spoiled = mistake.spoil(case, view if mistake.where == "one" else ALL)
    names = mistake.words.split("|") if mistake.words else []
    try:
        estimate = ptri.estimate_rig(
            *(spoiled.xy, spoiled.K, spoiled.confidence),
            size=spoiled.size,
            model=model,
            seed=case.seed,
        )
    except UserError as error:
        named = any(name in str(error) for name in names)
        return Outcome("refused" if named else "rejected", 0.0, 0.0, str(error))
    angle = torch.rad2deg(rotation_angle(estimate.R.mT @ spoiled.R))
    stated = torch.rad2deg(estimate.rotation_cov.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt())
    worst = int(angle.argmax())
    numbers = float(angle[worst]), float(stated[worst]), estimate.reason
    if estimate.accepted:
        outside = bool((rotation_level(estimate.posterior, spoiled.R[None]) > LEVEL).any())
        return Outcome("fault" if outside else "accepted", *numbers)
    right = mistake.where == "all" or estimate.verdict.view in (None, view)
    named = right and any(name in estimate.reason for name in names)
    return Outcome("named" if named else "rejected", *numbers)
