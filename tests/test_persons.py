"""Several persons before one rig: in turns, and together."""

from __future__ import annotations

import pytest
import torch
from rigs_fixture import deviation, estimate, is_lawful, normal, rotation_error_deg, scene

import ptri
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.posterior.body import NUM_BONES, load_body_prior
from ptri.posterior.equations import held_bones
from ptri.rig.persons import times_of
from ptri.rig.scale import body_height
from ptri.structures import Cameras

FRAMES = 8
SMALL = 0.75
NOISE = 3.0  # px


@pytest.fixture(scope="module")
def grown():
    return scene(FRAMES, seed=0)


@pytest.fixture(scope="module")
def child(grown):
    """Somebody else, smaller, beside the first one, seen by the same cameras."""
    middle = grown.joints.mean((0, 1))
    aside = torch.tensor([200.0, 0.0, 100.0])
    joints = SMALL * (grown.joints.flip(0) - middle) + middle + aside
    clean = project(joints, Cameras(grown.K, grown.R, grown.t))
    xy, one = clean + NOISE * normal(*clean.shape, seed=5), torch.ones_like(clean[..., 0])
    covariance = (NOISE**2 * torch.eye(2).double()).expand(*xy.shape, 2)
    return grown._replace(xy=xy, confidence=one, covariance=covariance, joints=joints)


@pytest.fixture(scope="module")
def together(grown, child):
    first, second = grown[:4], child[:4]
    xy, confidence, covariance = (torch.stack([first[i], second[i]], 2) for i in (0, 2, 3))
    return ptri.estimate_rig(xy, grown.K, confidence, covariance, K_std=0)


def both_in_turns(grown, child):
    parts = (torch.cat([grown[i], child[i]]) for i in (0, 2, 3))
    xy, confidence, covariance = parts
    return (xy, grown.K, confidence, covariance), ["anna"] * FRAMES + ["ben"] * FRAMES


def test_two_persons_together(grown, child, together):
    rig = together
    assert rig.accepted and is_lawful(rig)
    assert rig.joints3d.shape == (FRAMES, 2, 17, 3)
    assert rig.body.joints3d.shape == (FRAMES, 2, 17, 3)
    assert rig.body.covariance.shape == (FRAMES, 2, 17, 3, 3)
    assert rig.frames == list(range(FRAMES))
    assert [person.label for person in rig.persons] == [0, 1]
    alone = [estimate(one, K_std=0) for one in (grown, child)]
    errors = [float(rotation_error_deg(one, grown)[1:].mean()) for one in (rig, *alone)]
    assert errors[0] < 1.2 * min(errors[1:]) and errors[0] < max(errors[1:])
    assert deviation(rig, grown.R[1:]).max() < 3
    # Each has bones of his own, in one scale.
    true = [float(body_height(truth.joints)) for truth in (grown, child)]
    found = [person.height for person in rig.persons]
    assert found[1] / found[0] == pytest.approx(true[1] / true[0], rel=0.03)
    for place, truth in enumerate((grown, child)):
        scale = truth.t.norm() / rig.t.norm()
        off = (scale * rig.joints3d[:, place] - truth.joints).norm(dim=-1)
        assert float(off.median()) < 40, off.median()


def test_sizes_that_disagree_are_told(grown, child, together):
    first, second = together.persons
    apart = (second.scale / first.scale - 1) / (first.scale_std**2 + second.scale_std**2) ** 0.5
    assert apart > 3  # a child has no grown-up's bones
    assert estimate(grown, K_std=0).persons[0].scale == pytest.approx(1.0, abs=0.02)


def test_in_turns_is_as_together(grown, child, together):
    arrays, labels = both_in_turns(grown, child)
    rig = ptri.estimate_rig(*arrays, K_std=0, person=labels)
    assert [person.label for person in rig.persons] == ["anna", "ben"]
    torch.testing.assert_close(rig.R, together.R)
    parts = together.joints3d.transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(rig.joints3d, parts)
    torch.testing.assert_close(
        rig.body.joints3d, together.body.joints3d.transpose(0, 1).flatten(0, 1)
    )


def test_one_of_them_tells_the_scale(grown, child):
    arrays, labels = both_in_turns(grown, child)
    true = float(body_height(child.joints))
    scale = {"subject_height": ("ben", true)}
    rig = ptri.estimate_rig(*arrays, K_std=0, person=labels, scale=scale)
    assert rig.persons[1].height == pytest.approx(true, rel=0.01)
    assert rig.persons[0].height == pytest.approx(float(body_height(grown.joints)), rel=0.04)
    assert float(rig.t.norm() / grown.t.norm()) == pytest.approx(1, rel=0.03)


def test_mistakes_are_named(grown, child):
    arrays, labels = both_in_turns(grown, child)
    with pytest.raises(UserError, match=r"person: .*one label for each of the 16 frames"):
        ptri.estimate_rig(*arrays, person=labels[1:])
    with pytest.raises(UserError, match="leave out frames of which it is not known"):
        ptri.estimate_rig(*arrays, person=[float("nan"), *labels[1:]])
    with pytest.raises(UserError, match=r"whose.*anna, ben"):
        ptri.estimate_rig(*arrays, person=labels, scale={"subject_height": 1780})
    with pytest.raises(UserError, match="whose"):
        ptri.estimate_rig(*arrays, person=labels, scale={"subject_height": ("carl", 1780)})
    xy, K, confidence, _ = arrays
    xy, confidence = (part.unflatten(0, (2, -1)).transpose(0, 1) for part in (xy, confidence))
    xy, confidence = xy.transpose(1, 2), confidence.transpose(1, 2).clone()
    confidence[1, 2, 1, 3] = 7.0
    with pytest.raises(UserError, match=r"person ben: confidence.*frame 1, view 2, joint 3"):
        ptri.estimate_rig(xy, K, confidence, person=["anna", "ben"])
    with pytest.raises(UserError, match="one label for each person"):
        ptri.estimate_rig(xy, K, person=["anna", "anna"])


def test_frames_have_the_bones_of_their_person():
    body = load_body_prior(persons=2)
    assert len(body.mean) == 2 * NUM_BONES
    assert not body.precision[:NUM_BONES, NUM_BONES:].any()
    torch.testing.assert_close(body.precision @ body.covariance, torch.eye(32).double())

    class Seen:
        held = torch.ones(1, 3, 17)
        persons = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])

    held = held_bones(Seen, body)
    assert held[0, 0].tolist() == [1.0] * 16 + [0.0] * 16
    assert held[0, 2].tolist() == [0.0] * 16 + [1.0] * 16


def test_times_of_persons():
    one_by_one = torch.tensor([0, 0, 1, 1])[:, None]
    times = times_of(one_by_one, 4)
    assert (times.diff() > 0).all() and times[2] - times[1] > 1000
    assert times_of(torch.tensor([0, 1, 0, 1])[:, None], 4).tolist() == [0, 1, 2, 3]
