"""Camera rigs by family, with every camera seeing the person.

World: z up, mm, floor at z = 0; rigs stand around the origin. Families (views of a family that has
fewer natural places than views are spread over the same region):

* h36m_ring: four corners of a 3.6 x 10 m room, 1.5 m high, f = 1145 px at 1000 px, as Human3.6M;
* ring: evenly around the person at one height;
* dome: anywhere on the upper half of a sphere, as CMU Panoptic;
* corner: within 40 to 100 degrees, 1.2 to 3 m high;
* wall: along one straight wall, seen under 40 to 80 degrees;
* two_phones: hand-held portrait phones 20 to 110 degrees apart, slightly rolled;
* overhead: 2.6 to 4.5 m high, one of them straight above;
* random: any place, height, roll and focal length.

Image size and field of view are the family's; a camera too close is moved back along its axis, and
a focal length that would cut off too much of the person is shortened.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.cameras import centres, transform
from ptri.geometry.rotations import so3_exp
from ptri.people.draws import Draws
from ptri.structures import Cameras, take


class Family(NamedTuple):
    """Ranges (low, high) from which a family's rigs are drawn, uniformly; or tensors of them."""

    layout: int  # 0 spread round an ellipse, 1 arc, 2 straight wall, 3 anywhere
    distance: tuple[float, float]  # mm, horizontal (layout 3 dome: to the centre)
    height: tuple[float, float]  # mm above the floor
    rig_height: float  # 1: all cameras of a rig at one height, 0: each its own
    arc_deg: tuple[float, float]  # angle that the rig spans (layouts 1, 2)
    field: tuple[float, float]  # mm seen across the image's shorter side at the person
    roll_deg: float  # standard deviation
    aim: float  # mm, standard deviation of the point looked at
    portrait: float  # chance of an upright image
    aspect: tuple[float, float]  # longer over shorter side of the image


FAMILIES = {  # rows of `Family`
    "h36m_ring": (0, (0, 0), (1400, 1700), 0, (0, 0), (0, 0), 1.5, 150, 0, (1, 1)),
    "ring": (0, (2500, 6500), (800, 2500), 1, (0, 0), (2300, 4200), 2, 150, 0.2, (1, 1.78)),
    "dome": (3, (2200, 4500), (300, 4200), 0, (0, 0), (2300, 4000), 3, 200, 0, (1, 1.78)),
    "corner": (1, (3000, 6500), (1200, 3000), 0, (40, 100), (2300, 4500), 2, 250, 0, (1.33, 1.78)),
    "wall": (2, (2800, 5500), (900, 2600), 1, (40, 80), (2300, 4200), 1.5, 200, 0, (1.33, 1.78)),
    "two_phones": (1, (2200, 4500), (900, 1800), 0, (20, 110), (1400, 2600), 5, 200, 0.75,
                   (1.33, 2.17)),
    "overhead": (3, (300, 3500), (2600, 4500), 0, (0, 0), (2400, 4200), 8, 250, 0, (1, 1.78)),
    "random": (3, (1800, 8000), (200, 4000), 0, (0, 0), (2000, 5500), 15, 300, 0.3, (1, 1.9)),
}  # fmt: skip
FAMILY_NAMES = tuple(FAMILIES)
_NEAREST = 800.0  # mm, least depth of a joint
_FOCAL_RANGE = (0.45, 4.0)  # of the longer image side: an ultra-wide phone to a long lens
_H36M_CORNER = (1850.0, 4900.0)  # mm, where Human3.6M's cameras stand
_LONG_SIDES = (640, 1000, 1080, 1280, 1920)  # px


class Rig(NamedTuple):
    """Cameras of B people with their image sizes, world frame."""

    cameras: Cameras  # K (B, V, 3, 3), R (B, V, 3, 3), t (B, V, 3): x_cam = R x_world + t
    size: Tensor  # (B, V, 2) px, width and height


def family_indices(names: list[str] | tuple[str, ...], key: str = "generated.families") -> Tensor:
    """Indices (F,) int64 of rig families in `FAMILY_NAMES`.

    Raises:
        UserError: an unknown family or none at all; the message names ``key``.
    """
    families = ", ".join(FAMILY_NAMES)
    for name in names:
        if name not in FAMILIES:
            raise UserError(f"{key}: unknown rig family '{name}'; expected one of {families}")
    if not names:
        raise UserError(f"{key}: no rig family; name at least one of {families}")
    return torch.tensor([FAMILY_NAMES.index(name) for name in names])


@functools.cache
def _family_table() -> Family:
    """Each field of `Family` as a tensor (F,) or (F, 2)."""
    columns = zip(*FAMILIES.values())
    return Family(*(torch.tensor(column, dtype=torch.float32) for column in columns))


def sample_rigs(
    draws: Draws, family: Tensor, joints: Tensor, num_views: int, max_truncated: float = 0.2
) -> Rig:
    """Draws a rig for each person, in random view order.

    Args:
        draws: B streams.
        family: (B,) int64 index into `FAMILY_NAMES`.
        joints: (B, T, J, 3) mm, world, what the cameras have to see.
        num_views: V.
        max_truncated: largest share of the joints (over all frames) that may lie outside an image;
            the share allowed is drawn per view, most often 0.
    """
    row = take(_family_table(), family)
    centre, height = _places(draws, family, row, num_views)
    aim = row.aim[:, None, None] * draws.normal(num_views, 3)
    target = aim * torch.tensor([1.0, 1.0, 0.5]) + torch.tensor([0.0, 0.0, 900.0])
    centre = torch.cat([centre, height.unsqueeze(-1)], dim=-1)
    roll = row.roll_deg[:, None] * (math.pi / 180) * draws.normal(num_views)
    # A phone or a camera now and then lies on its side.
    side = (math.pi / 2) * draws.sign(num_views)
    roll = roll + side * (draws.uniform(num_views) < 0.1 * _is(family, "random"))
    R = look_at(centre, target, roll)
    size = _image_sizes(draws, row, num_views)
    focal = _focal_lengths(draws, family, row, size, (target - centre).norm(dim=-1))
    shift = 0.02 * size * draws.normal(num_views, 2)
    rig = _see_person(draws, joints, centre, R, focal, size, size / 2 - 0.5 + shift, max_truncated)
    order = draws.uniform(num_views).argsort(dim=1)
    return take(rig, (torch.arange(draws.batch).unsqueeze(1), order))


def in_order(rig: Rig) -> Rig:
    """A rig with its views counter-clockwise around the origin, from the widest gap on.

    So the views of all rigs of a family come in one order, as cables plugged in alike.
    """
    centre = centres(rig.cameras.R, rig.cameras.t)
    angle, order = torch.atan2(centre[..., 1], centre[..., 0]).sort(dim=1)  # (B, V)
    gap = (angle - angle.roll(1, dims=1)) % (2 * math.pi)  # before each view
    start = gap.argmax(dim=1, keepdim=True)
    turn = (torch.arange(angle.shape[1]) + start) % angle.shape[1]
    return take(rig, (torch.arange(len(angle)).unsqueeze(1), order.gather(1, turn)))


def look_at(centre: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """World-to-camera rotations (..., 3, 3) of cameras that look at a point.

    Args:
        centre, target: (..., 3) mm, world with z up. roll: (...,) rad about the optical axis.
    """
    forward = torch.nn.functional.normalize(target - centre, dim=-1)
    # A camera that looks straight down has no right from "up"; 0.01 in x stands in for it.
    right = torch.stack([forward[..., 1], -forward[..., 0], torch.zeros_like(roll)], dim=-1)
    steep = right.norm(dim=-1, keepdim=True) < 0.01
    right = torch.where(steep, torch.tensor([1.0, 0.0, 0.0]), right)
    right = torch.nn.functional.normalize(right - (right * forward).sum(-1, True) * forward, dim=-1)
    down = torch.linalg.cross(forward, right)
    upright = torch.stack([right, down, forward], dim=-2)
    return so3_exp(torch.nn.functional.pad(roll.unsqueeze(-1), (2, 0))) @ upright


def _is(family: Tensor, name: str) -> Tensor:
    """(B, 1) bool: rigs of that family."""
    return (family == FAMILY_NAMES.index(name)).unsqueeze(1)


def _between(draws: Draws, bounds: Tensor, num: int) -> Tensor:
    """(B, num) uniform in the rows of (B, 2) bounds."""
    return bounds[:, :1] + (bounds[:, 1:] - bounds[:, :1]) * draws.uniform(num)


def _places(draws: Draws, family: Tensor, row: Family, num_views: int) -> tuple[Tensor, Tensor]:
    """Horizontal camera positions (B, V, 2) mm about the origin and heights (B, V) mm."""
    index = torch.arange(num_views).expand(draws.batch, -1)
    heading = draws.uniform(1, high=2 * math.pi)
    distances, shared = (_between(draws, row.distance, num) for num in (num_views, 1))
    jitter = draws.normal(num_views)
    layout = row.layout[:, None]
    # Layout 0: evenly around, at one distance give or take.
    even = 2 * math.pi * (index + 0.5) / num_views + 0.15 * jitter
    # Layouts 1 and 2: evenly over an arc, both ends taken.
    arc = _between(draws, row.arc_deg, 1) * (math.pi / 180)
    share = index / max(num_views - 1, 1) - 0.5
    spread = arc * (share + 0.15 * jitter / num_views)
    # Layout 3: anywhere.
    anywhere = draws.uniform(num_views, high=2 * math.pi)
    angle = torch.where(layout == 0, even, torch.where(layout == 3, anywhere, spread))
    distance = torch.where(layout == 0, shared * (1 + 0.08 * draws.normal(num_views)), distances)
    distance = torch.where(layout == 2, shared / torch.cos(spread), distance)

    height = _between(draws, row.height, num_views)
    level = _between(draws, row.height, 1) + 60 * draws.normal(num_views)
    height = torch.where(row.rig_height[:, None] > 0, level, height)
    flat = (distance**2 - (height - 900) ** 2).clamp_min(500.0**2).sqrt()
    distance = torch.where(_is(family, "dome"), flat, distance)  # which is to the centre there
    above = _is(family, "overhead") & (index == 0)
    distance = torch.where(above, 0.2 * distance, distance)
    position = distance.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)

    # Human3.6M: the four corners in random order; further views in between, on an ellipse.
    noise = 250.0 * draws.normal(num_views, 2)
    corners = draws.uniform(4).argsort(dim=1) * 2 + 1  # eighths of a turn
    between = draws.uniform(4).argsort(dim=1) * 2
    eighths = torch.cat([corners, between], dim=1)[:, torch.arange(num_views) % 8]
    angle, half = eighths * (math.pi / 4), torch.tensor(_H36M_CORNER) * math.sqrt(2)
    h36m = half * torch.stack([angle.cos(), angle.sin()], dim=-1) + noise
    position = torch.where(_is(family, "h36m_ring")[..., None], h36m, position)
    turn = torch.stack([heading.cos(), -heading.sin(), heading.sin(), heading.cos()], dim=-1)
    return position @ turn.reshape(-1, 2, 2).transpose(-1, -2), height


def _image_sizes(draws: Draws, row: Family, num_views: int) -> Tensor:
    """(B, V, 2) px; one model of camera per rig, each upright or not by chance."""
    sides = torch.tensor(_LONG_SIDES, dtype=torch.float32)
    long_side = sides[draws.choice(len(_LONG_SIDES), 1)]
    aspect = _between(draws, row.aspect, 1)
    long_side = torch.where(aspect == 1, 1000.0, long_side)
    short_side = (long_side / aspect).round()
    size = torch.stack([long_side, short_side], dim=-1).expand(-1, num_views, -1)
    upright = draws.uniform(num_views) < row.portrait[:, None]
    return torch.where(upright.unsqueeze(-1), size.flip(-1), size)


def _focal_lengths(
    draws: Draws, family: Tensor, row: Family, size: Tensor, distance: Tensor
) -> Tensor:
    """(B, V) px so that the family's field is seen at the person."""
    num_views = size.shape[1]
    field = _between(draws, row.field, 1) * torch.exp(0.08 * draws.normal(num_views))
    # 1 mm guards the family without a field (h36m_ring), which is replaced below.
    focal = size.amin(-1) * distance / field.clamp_min(1.0)
    low, high = (limit * size.amax(-1) for limit in _FOCAL_RANGE)
    h36m = size.amax(-1) * (1.1475 + 0.003 * draws.normal(num_views))
    focal = torch.maximum(torch.minimum(focal, high), low)
    return torch.where(_is(family, "h36m_ring"), h36m, focal)


def _see_person(
    draws: Draws,
    joints: Tensor,
    centre: Tensor,
    R: Tensor,
    focal: Tensor,
    size: Tensor,
    middle: Tensor,
    max_truncated: float,
) -> Rig:
    """Moves cameras back and shortens focal lengths until each sees the person; builds the rig."""
    points = joints.flatten(1, 2)  # (B, N, 3)
    t = -(R @ centre.unsqueeze(-1)).squeeze(-1)
    camera_points = transform(points.unsqueeze(1), R, t)  # (B, V, N, 3)
    back = (_NEAREST - camera_points[..., 2].amin(-1)).clamp_min(0)
    t = torch.cat([t[..., :2], t[..., 2:] + back.unsqueeze(-1)], dim=-1)
    depth = camera_points[..., 2] + back.unsqueeze(-1)
    # Share of the way from the principal point to the image's edge, at focal length 1.
    slope = camera_points[..., :2] / depth.unsqueeze(-1)
    edge = torch.where(slope > 0, (size - 1 - middle).unsqueeze(-2), middle.unsqueeze(-2))
    reach = (slope.abs() / edge).amax(-1).sort(dim=-1).values  # (B, V, N)
    V = centre.shape[1]
    allowed = max_truncated * draws.uniform(V) * (draws.uniform(V) < 0.3)
    last = ((1 - allowed) * (reach.shape[-1] - 1)).long()
    limit = 0.97 / reach.gather(-1, last.unsqueeze(-1)).squeeze(-1)
    focal = torch.minimum(focal, limit)
    K = torch.eye(3).repeat(*focal.shape, 1, 1)
    K[..., 0, 0], K[..., 1, 1] = focal, focal * (1 + 0.002 * draws.normal(V))
    K[..., :2, 2] = middle
    return Rig(Cameras(K, R, t), size)
