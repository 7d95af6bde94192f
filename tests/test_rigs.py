"""Rigs: every camera sees the person, families look like themselves."""

import math

import pytest
import torch

from ptri.errors import UserError
from ptri.geometry.cameras import centres, transform
from ptri.people.bodies import sample_clips
from ptri.people.draws import Draws
from ptri.people.rigs import FAMILIES, FAMILY_NAMES, Rig, family_indices, look_at, sample_rigs


def make(family: str, num_views: int, batch: int = 40, **options) -> tuple[Rig, torch.Tensor]:
    stream = Draws.from_seeds([(0, i) for i in range(batch)])
    joints = sample_clips(stream, 2, 10.0).joints3d
    joints = joints + 500 * stream.normal(1, 1, 3) * torch.tensor([1.0, 1, 0])
    index = torch.full((batch,), FAMILY_NAMES.index(family))
    return sample_rigs(stream, index, joints, num_views, **options), joints


def share_inside(rig: Rig, joints: torch.Tensor) -> torch.Tensor:
    """(B, V) share of the joints inside the image; also checks that all are in front."""
    points = joints.flatten(1, 2).unsqueeze(1)
    view = transform(points, rig.cameras.R, rig.cameras.t)
    assert view[..., 2].min() > 799  # mm
    pixels = (view @ rig.cameras.K.transpose(-1, -2))[..., :2] / view[..., 2:]
    inside = (pixels > -0.5) & (pixels < rig.size.unsqueeze(-2) - 0.5)
    return inside.all(-1).float().mean(-1)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_view_sees_the_person(family):
    for num_views in (2, 4, 8):
        rig, joints = make(family, num_views, max_truncated=0.2)
        share = share_inside(rig, joints)
        assert share.min() >= 0.79
        assert (share == 1).float().mean() > 0.6
        assert rig.size.shape == (40, num_views, 2)
    rig, joints = make(family, 4, max_truncated=0.0)
    assert (share_inside(rig, joints) == 1).all()
    # The control: with the focal length tripled, many views cut the person off.
    K = rig.cameras.K * torch.tensor([3.0, 3, 1])[:, None]
    long = rig._replace(cameras=rig.cameras._replace(K=K))
    assert (share_inside(long, joints) < 0.79).float().mean() > 0.3


def world_centres(family: str, num_views: int) -> torch.Tensor:
    rig, _ = make(family, num_views)
    return centres(rig.cameras.R, rig.cameras.t)


def test_families_look_like_themselves():
    h36m = world_centres("h36m_ring", 4)
    assert ((h36m[..., 2] > 1200) & (h36m[..., 2] < 1900)).all()
    sides = torch.cdist(h36m, h36m).sort(-1).values.median(1).values.median(0).values
    # The corners of 3.7 x 9.8 m: the distances to the three others.
    assert torch.allclose(sides, torch.tensor([0.0, 3700, 9800, 10500]), atol=500)

    # Moving a camera back from a person too close leaves the wall a little.
    for family, least, most in (("wall", 0.0, 0.1), ("ring", 0.6, 1.0)):
        place = world_centres(family, 5)[..., :2]
        long, thin = torch.linalg.svdvals(place - place.mean(1, keepdim=True)).unbind(-1)
        assert least <= (thin / long).median() < most

    corner = world_centres("corner", 4)[..., :2]
    direction = torch.nn.functional.normalize(corner, dim=-1)
    widest = (direction @ direction.transpose(-1, -2)).flatten(1).amin(1).acos()
    assert widest.max() < math.radians(150) and widest.median() < math.radians(100)

    overhead = world_centres("overhead", 4)
    assert overhead[..., 2].min() > 2000
    steepest = (overhead[..., 2] - 900) / overhead[..., :2].norm(dim=-1)
    assert (steepest.amax(1) > 2).float().mean() > 0.8

    phones, _ = make("two_phones", 2, batch=200)
    portrait = (phones.size[..., 1] > phones.size[..., 0]).float().mean()
    assert 0.6 < portrait < 0.9
    focal, _ = make("random", 4, batch=100)
    ratio = focal.cameras.K[..., 0, 0] / focal.size.amax(-1)
    assert ratio.min() < 0.8 and ratio.max() > 2.2


def test_images_are_upright_and_any_view_can_be_the_reference():
    down, rolled = (make(name, 4)[0].cameras.R[..., 1, 2] for name in ("h36m_ring", "random"))
    assert (down < -0.9).all() and (rolled > -0.9).float().mean() > 0.1
    # The overhead family's top camera turns up at every place in the order.
    top = world_centres("overhead", 4)[..., :2].norm(dim=-1).argmin(1)
    assert set(top.tolist()) == {0, 1, 2, 3}


def test_look_at_puts_the_target_on_the_axis():
    generator = torch.Generator().manual_seed(0)
    centre, target = (1000 * torch.randn(50, 3, generator=generator) for _ in range(2))
    target[0] = centre[0] - torch.tensor([0.0, 0.0, 500.0])  # straight down
    R = look_at(centre, target, torch.zeros(50))
    seen = (R @ (target - centre).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(seen[:, :2], torch.zeros(50, 2), atol=0.01) and (seen[:, 2] > 0).all()
    assert torch.allclose(R @ R.transpose(-1, -2), torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(50), atol=1e-5)
    assert R[1:, 0, 2].abs().max() < 1e-5 and (R[1:, 1, 2] <= 0).all()  # level, not upside down
    rolled = look_at(centre, target, torch.full((50,), 0.3))
    assert torch.allclose((rolled @ R.transpose(-1, -2))[:, 1, 0], torch.tensor(0.3).sin())


def test_unknown_families_are_named():
    with pytest.raises(UserError, match=r"generated\.families: unknown rig family 'circle'"):
        family_indices(["circle"])
    with pytest.raises(UserError, match="no rig family"):
        family_indices([])
    assert family_indices(list(FAMILIES)).tolist() == list(range(len(FAMILIES)))
