"""Pictures: right shape and type, marks at the right pixels, no failure on missing joints."""

import cv2
import numpy as np
import pytest
import torch
from h36m_fixture import STANDING

from ptri.evaluation import draw as visualize
from ptri.evaluation.draw_rig import rig_picture
from ptri.geometry.rotations import so3_exp
from ptri.posterior.sampling import posterior_from_cameras
from ptri.skeleton import H36M17
from ptri.structures import Cameras, RigPosterior

LEFT_KNEE, RIGHT_KNEE = H36M17.joints.index("left_knee"), H36M17.joints.index("right_knee")


@pytest.fixture
def joints():
    return STANDING * [1, -1, 1] + [0, 800, 4000]  # camera axes: y down


NAMES = ["a", "b", "c"]
WHITE = np.full((100, 100, 3), 255, np.uint8)


def ring():
    """Three cameras around a point 4 m in front of the first."""
    R = so3_exp(torch.tensor([[0, -angle, 0] for angle in (0.0, 1.5, 3.0)]).double())
    middle = torch.tensor([0, 0, 4000.0]).double()
    return Cameras(None, R, middle - R @ middle)


def certain(cameras):
    return posterior_from_cameras(Cameras(None, cameras.R[None], cameras.t[None]))


def nearest(picture, colour):
    """(x, y) of the pixels near a colour, and their number."""
    close = np.abs(picture.astype(int) - colour).sum(-1) < 60
    return np.argwhere(close)[:, ::-1], int(close.sum())


def test_overlay_puts_marks_where_they_belong():
    xy = np.full((17, 2), np.nan)
    xy[LEFT_KNEE], xy[RIGHT_KNEE] = [20, 30], [80, 70]
    picture = visualize.overlay(WHITE, H36M17, xy, height=400)
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    for joint, colour in ((LEFT_KNEE, visualize.LEFT), (RIGHT_KNEE, visualize.RIGHT)):
        where, count = nearest(picture, colour)
        assert count > 10
        np.testing.assert_allclose(where.mean(0), (xy[joint] + 0.5) * 4 - 0.5, atol=1.0)
    titled = visualize.overlay(WHITE, H36M17, xy, height=400, title="a title, 3 px")
    assert titled.shape == (426, 400, 3)
    np.testing.assert_array_equal(titled[26:], picture)


def test_overlay_ellipse_has_the_covariance_axes():
    xy = np.full((17, 2), np.nan)
    xy[LEFT_KNEE] = [50, 50]
    covariance = np.tile(np.eye(2), (17, 1, 1))
    covariance[LEFT_KNEE] = np.diag([100.0, 4.0])  # 21 and 4.3 px at 90 %
    picture = visualize.overlay(WHITE, H36M17, xy, covariance, height=100)
    marked = np.argwhere((picture < 250).any(-1))[:, ::-1]
    extent = np.ptp(marked, axis=0) + 1
    np.testing.assert_allclose(extent / 2, [21.5, 4.3], atol=1.6)
    # Nothing of a covariance or a point that is not finite is drawn.
    covariance[LEFT_KNEE] = np.nan
    few = visualize.overlay(WHITE, H36M17, xy, covariance, height=100)
    assert (few < 250).any(-1).sum() < (picture < 250).any(-1).sum() / 3


def test_heatmaps_are_bright_at_the_peak():
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    logits = -((x - 4) ** 2 + (y - 10) ** 2)[None] / 2.0
    nowhere = torch.full((1, 2), torch.nan)
    picture = visualize.heatmap_picture(torch.zeros(3, 64, 64), logits, nowhere)
    peak = np.unravel_index(picture.sum(-1).argmax(), picture.shape[:2])
    scale = picture.shape[0] / 16
    np.testing.assert_allclose(np.array(peak) / scale, [10.5, 4.5], atol=0.5)


def test_skeleton_sides_show_left_on_the_viewers_right(joints):
    picture = visualize.skeleton_sides(joints, title="standing")
    assert picture.dtype == np.uint8 and picture.ndim == 3
    front = picture[60 : picture.shape[0] - 60, : picture.shape[1] // 2]
    left, right = (
        nearest(front, colour)[0][:, 0].mean() for colour in (visualize.LEFT, visualize.RIGHT)
    )
    assert left > right + 30  # facing us, the person's left is on our right
    turned = joints * [-1, 1, -1] + [0, 0, 8000]  # turned away: we walk around
    again = visualize.skeleton_sides(turned, title="standing")
    assert np.abs(again.astype(int) - picture).mean() < 1.0


def test_pictures_survive_missing_joints(joints, tmp_path):
    joints = joints.copy()
    joints[[0, 7, 9]] = np.nan
    covariance = np.tile(np.eye(3) * 400, (17, 1, 1))
    covariance[0] = np.nan
    side = visualize.skeleton_sides(joints, covariance, joints + 20)
    rig = rig_picture(certain(ring()), joints, NAMES)
    sheet = visualize.beside([side, rig], 1)
    assert sheet.shape[1] >= max(side.shape[1], rig.shape[1])
    visualize.save(sheet, tmp_path / "deep/sheet.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "deep/sheet.png"))[..., ::-1], sheet)


def test_rig_picture_shows_cameras_samples_and_truth(joints):
    cameras = ring()
    bare = rig_picture(certain(cameras), joints, NAMES)
    for colour in visualize.CAMERA_COLOURS[:3]:
        assert nearest(bare, colour)[1] > 50
    noise = 100 * torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    samples = cameras.R.repeat(64, 1, 1, 1, 1), cameras.t + noise
    posterior = RigPosterior(*samples, torch.full((64, 1), 1 / 64).double().log(), torch.ones(1))
    assert np.abs(rig_picture(posterior, joints, NAMES).astype(int) - bare).sum() > 0
    # The true rig at half the scale is scaled to the estimate's size: it lies under it.
    other = rig_picture(certain(cameras), joints, NAMES, cameras._replace(t=0.5 * cameras.t))
    moved = cameras.t + torch.tensor([0, 0, 1]) * torch.arange(3)[:, None] * 800
    apart = rig_picture(certain(cameras), joints, NAMES, cameras._replace(t=moved))
    grey = [nearest(p, visualize.TRUTH)[1] for p in (bare, other, apart)]
    assert grey[2] > grey[1] + 50
