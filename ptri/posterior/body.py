"""What is known of bodies before any image: the joint law of the bones' log lengths.

It carries the metric scale, the proportions and the left/right symmetry at once: the covariance of
the log lengths over people holds a common factor (size), smaller ones (proportions), and nearly
equal rows for a bone and its mirror image.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.skeleton import H36M17
from ptri.structures import tree_map

NUM_BONES = len(H36M17.bones)  # of a person


class BodyPrior(NamedTuple):
    """Gaussian law of log bone lengths (log mm), and how rigid a bone is over frames.

    Of P persons, each with bones of the same law, independent of the others': N = P NUM_BONES.
    """

    child: Tensor  # (N,) int64 joint index
    parent: Tensor  # (N,) int64 joint index
    free: Tensor  # (F,) int64 joints that have no bone to a parent
    incidence: Tensor  # (N, J) takes joints to bone vectors, child minus parent
    mean: Tensor  # (N,) log mm
    covariance: Tensor  # (N, N)
    precision: Tensor  # (N, N) its inverse
    slack: float  # relative standard deviation of one bone's length over frames

    def to(self, device: torch.device, dtype: torch.dtype) -> BodyPrior:
        """The prior on a device, its real numbers of a type."""
        return tree_map(lambda v: v.to(device, dtype if v.is_floating_point() else v.dtype), self)


@functools.cache
def length_laws() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mean (16,) log mm and covariance (16, 16) of log bone lengths: of adults, of children."""
    text = resources.files("ptri").joinpath("posterior/body_statistics.json").read_text()
    statistics = json.loads(text)

    def law(part: dict) -> tuple[Tensor, Tensor]:
        names = "mean_log_length", "covariance_log_length"
        mean, covariance = (torch.tensor(part[name], dtype=torch.float64) for name in names)
        return mean, covariance

    return law(statistics), law(statistics["children"])


def load_body_prior(
    num_joints: int = len(H36M17.joints),
    slack: float = 0.03,
    definition: float = 0.0,
    spread: float = 0.0,
    ratio: Sequence[float] = (),
    children: float = 0.0,
    persons: int = 1,
) -> BodyPrior:
    """The prior over the 17 Human3.6M joints, learned from generated phenotypes.

    Args:
        num_joints: J; joints beyond the 17 take part without a bone.
        slack: relative change of one bone's length between frames (joints are not hinges).
        definition: mm by which a detector's joint definitions may change a bone's length, left and
            right alike; 0 for the definitions the prior was learned with. Short bones suffer most,
            so that long ones decide the scale.
        spread: relative standard deviation of bones beyond the statistics, left and right alike.
        ratio: length of each bone as a detector draws it over the prior's; empty: 1.
        children: how likely somebody is a child (4 to 14 years). The law is the Gaussian with the
            mean and covariance of adults and children so mixed: proportions then tell the size.
        persons: P.
    """
    child, parent = zip(*H36M17.bones)
    (mean, covariance), (young, young_covariance) = length_laws()
    step = young - mean
    covariance = torch.lerp(covariance, young_covariance, children)
    covariance = covariance + children * (1 - children) * step[:, None] * step
    mean = mean + children * step
    if ratio:
        mean = mean + torch.tensor(list(ratio), dtype=torch.float64).log()
    # Phenotypes are smooth functions of a few numbers, so their covariance is nearly singular;
    # 1 % of each bone's length is individual.
    own = torch.eye(len(child), dtype=torch.float64)
    mirror = list(H36M17.flip_bones)
    relative = definition * (-mean).exp()
    doubt = relative[:, None] * relative + spread**2
    covariance = covariance + 0.01**2 * own + doubt * torch.maximum(own, own[mirror])
    free = [j for j in range(num_joints) if j not in child]
    eye, each = torch.eye(num_joints, dtype=torch.float64), torch.eye(persons, dtype=torch.float64)
    return BodyPrior(
        torch.tensor(child * persons),
        torch.tensor(parent * persons),
        torch.tensor(free),
        (eye[list(child)] - eye[list(parent)]).repeat(persons, 1),
        mean.repeat(persons),
        torch.kron(each, covariance),
        torch.kron(each, torch.linalg.inv(covariance).contiguous()),
        slack,
    )


def bone_vectors(joints: Tensor, body: BodyPrior) -> tuple[Tensor, Tensor]:
    """Bone lengths (..., N) mm and unit directions (..., N, 3) of joints (..., J, 3)."""
    difference = joints[..., body.child, :] - joints[..., body.parent, :]
    # 1 mm guards joints that coincide.
    length = difference.norm(dim=-1).clamp_min(1.0)
    return length, difference / length.unsqueeze(-1)
