"""What to film for cameras that are known better."""

from __future__ import annotations

import math

import pytest
import torch
from rigs_fixture import normal, scene

import ptri
from ptri.geometry.cameras import project
from ptri.rig.advice import Advice
from ptri.structures import Cameras

FRAMES = 8


@pytest.fixture(scope="module")
def walk():
    """Somebody on the spot, seen with an offset of every keypoint that stays."""
    truth = scene(FRAMES, seed=0)
    xy = seen(truth, truth.joints)
    one = torch.ones_like(xy[..., 0])
    covariance = (9 * torch.eye(2).double()).expand(*xy.shape, 2)
    return truth._replace(xy=xy, confidence=one, covariance=covariance)


def seen(truth, joints):
    xy = project(joints, Cameras(truth.K, truth.R, truth.t))
    offset = 5 * normal(1, *xy.shape[1:], seed=3)
    return xy + offset + 3 * normal(*xy.shape, seed=4)


def advised(walk, xy=None, **more):
    xy = walk.xy if xy is None else xy
    return ptri.estimate_rig(
        xy, walk.K, walk.confidence, walk.covariance, K_std=0, advice=True, **more
    )


def test_another_place_is_better(walk):
    rig = advised(walk)
    advice = rig.advice
    assert advice.rotation_deg == pytest.approx(
        math.degrees(float(rig.rotation_cov.diagonal(dim1=-2, dim2=-1).sum(-1).max().sqrt()))
    )
    assert advice.elsewhere_deg < 0.8 * advice.same_deg < 0.95 * advice.rotation_deg
    middle = rig.joints3d.median(1).values.median(0).values
    place = torch.tensor(advice.place).double()
    assert float((place - middle).norm()) > 500
    # Where it says that the place is in the pictures, it is.
    for v, at in enumerate(advice.pixels):
        if at is not None:
            pixel = rig.K[v] @ (rig.R[v] @ place + rig.t[v])
            off = torch.tensor(at).double() - pixel[:2] / pixel[2]
            assert float(off.norm()) < 30  # px: the mean cameras are not the most probable ones
    assert sum(at is not None for at in advice.pixels) >= 2
    # And somebody who follows it is told of cameras that are known better.
    follow = seen(walk, walk.joints + (place - middle) * float(walk.t.norm() / rig.t.norm()))
    parts = (torch.cat([one, one]) for one in (walk.confidence, walk.covariance))
    xy, (confidence, covariance) = torch.cat([walk.xy, follow]), parts
    both = ptri.estimate_rig(xy, walk.K, confidence, covariance, K_std=0, advice=True)
    assert both.advice.rotation_deg < 0.7 * advice.rotation_deg


def test_without_asking_there_is_none(walk):
    rig = ptri.estimate_rig(walk.xy, walk.K, walk.confidence, walk.covariance, K_std=0)
    assert rig.advice is None


def test_views_that_share_little(walk):
    xy = walk.xy.clone()
    xy[:6, 2] = torch.nan
    rig = advised(walk, xy)
    assert rig.advice.shared[2][1] == pytest.approx(0.25)
    assert "view 0 and view 2 see somebody together in 25%" in rig.advice.words()


def test_words():
    shared, pixels = ((1, 0.9), (0.9, 1)), ((10.0, 20.0), None)
    advice = Advice(2.0, 1, 1.0, 6.0, 1.6, 0.5, (0.0, 0.0, 0.0), pixels, shared, None)
    words = advice.words(["left", "right"])
    assert "rotation of right is known to 2 deg; 6 times as much of the same gives 1 deg" in words
    assert "another place gives 0.5 deg: there the person's middle is at 10, 20 px of left" in words
    assert "right" not in words.split("at 10")[1]
    enough = advice._replace(rotation_deg=0.4, again=0).words()
    assert enough.startswith("look at the camera of view 0, and film again; ")
    assert enough.endswith("the rotation of view 1 is known to 0.4 deg")
    assert "hardly helps" in advice._replace(longer=math.inf).words()
