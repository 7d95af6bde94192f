"""Rig families of the benchmark: those of `ptri.people.rigs`, and some of exact layout.

The exact ones repeat the layouts for which Cramer-Rao bounds are stated: cameras 4.5 m from the
middle, 1000 px images, focal length 1150 px. The shipped lifter was trained on every family of
`ptri.people.rigs` but "wall". "ring4" and "two60", "two20" resemble trained families (ring,
two_phones); "ring_far" stands farther away and higher than any camera the lifter has seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.people.draws import Draws
from ptri.people.rigs import FAMILY_NAMES, Rig, look_at, sample_rigs
from ptri.structures import Cameras, take


class Layout(NamedTuple):
    """Places of V cameras about the middle: evenly over an arc, with jitter."""

    num_views: int
    arc_deg: float  # 360: all round; else both ends taken
    jitter_deg: float  # standard deviation of each place on the arc
    distance: tuple[float, float]  # mm, horizontal
    height: tuple[float, float]  # mm
    field: float  # mm seen across the image at the middle; 0: focal length 1150 px
    wall: bool = False  # on one straight line instead of a circle


LAYOUTS = {
    "ring4": Layout(4, 360, 8, (4400, 4600), (1000, 2000), 0),
    "ring_far": Layout(4, 360, 20, (8500, 10000), (2600, 4200), 3400),
    "wall5": Layout(5, 60, 3, (4400, 4600), (1000, 2000), 0, wall=True),
    "corner3": Layout(3, 70, 3, (4400, 4600), (1200, 3000), 0),
    "two60": Layout(2, 60, 0, (4400, 4600), (1000, 2000), 0),
    "two20": Layout(2, 20, 0, (4400, 4600), (1000, 2000), 0),
    "dome8": Layout(8, 360, 8, (2500, 4500), (300, 4000), 0),
}
SIDE = 1000.0  # px, image side of the exact layouts
FOCAL = 1150.0  # px
NAMES = (*LAYOUTS, *FAMILY_NAMES)
HELD_OUT = ("wall", "ring_far", "ring4", "two60", "two20")
GROUPS = {
    "held-out": HELD_OUT,
    "all": NAMES,
    "trained": tuple(name for name in FAMILY_NAMES if name != "wall"),
    "ordinary": ("wall", "ring_far", "ring4", "wall5", "corner3", "dome8"),
}
_PAIR_FAMILIES = ("two_phones",)


def choose(names: list[str] | tuple[str, ...]) -> list[str]:
    """Family names from names and groups ("held-out", "all", "trained", "ordinary").

    Raises:
        UserError: an unknown name.
    """
    chosen: list[str] = []
    for name in names:
        if name not in NAMES and name not in GROUPS:
            raise UserError(
                f"unknown rig family '{name}'; expected some of {', '.join((*GROUPS, *NAMES))}"
            )
        chosen += [family for family in GROUPS.get(name, (name,)) if family not in chosen]
    return chosen


def num_views(name: str) -> int:
    """V of a family: four unless the family says otherwise."""
    if name in LAYOUTS:
        return LAYOUTS[name].num_views
    return 2 if name in _PAIR_FAMILIES else 4


def trained(name: str) -> str:
    """How near a family is to what the shipped lifter was trained on, in words."""
    if name in ("wall", "wall5"):
        return "held out"
    if name in LAYOUTS:
        return "held out" if name == "ring_far" else "like a trained family"
    return "trained"


def draw_rigs(name: str, draws: Draws, joints: Tensor, views: int | None = None) -> Rig:
    """World cameras of B people (B, T, J, 3) mm, in random view order.

    Args:
        views: None: the family's own number.
    """
    views = num_views(name) if views is None else views
    if name not in LAYOUTS:
        family = torch.full((draws.batch,), FAMILY_NAMES.index(name))
        return sample_rigs(draws, family, joints, views, max_truncated=0.0)
    return _exact(LAYOUTS[name]._replace(num_views=views), draws)


def _exact(layout: Layout, draws: Draws) -> Rig:
    V, B = layout.num_views, draws.batch
    place = torch.arange(V) / (V if layout.arc_deg >= 360 else max(V - 1, 1))
    angle = math.radians(layout.arc_deg) * (place - (0 if layout.arc_deg >= 360 else 0.5))
    angle = angle + math.radians(layout.jitter_deg) * draws.normal(V)  # (B, V)
    distance = draws.uniform(V, low=layout.distance[0], high=layout.distance[1])
    if layout.wall:
        distance = distance / angle.cos()
    height = draws.uniform(V, low=layout.height[0], high=layout.height[1])
    angle = angle + draws.uniform(1, high=2 * math.pi)  # heading of the rig
    centre = torch.stack([distance * angle.cos(), distance * angle.sin(), height], dim=-1)
    target = 150.0 * draws.normal(V, 3) + torch.tensor([0.0, 0.0, 900.0])
    R = look_at(centre, target, math.radians(2.0) * draws.normal(V))
    t = -(R @ centre.unsqueeze(-1)).squeeze(-1)
    focal = torch.full((B, V), FOCAL)
    if layout.field:
        focal = SIDE * (target - centre).norm(dim=-1) / layout.field
    K = torch.eye(3).repeat(B, V, 1, 1)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., :2, 2] = (SIDE - 1) / 2
    rig = Rig(Cameras(K, R, t), torch.full((B, V, 2), SIDE))
    order = draws.uniform(V).argsort(dim=1)
    return take(rig, (torch.arange(B).unsqueeze(1), order))
