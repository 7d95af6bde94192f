"""Joints whose truth is not known (NaN): no loss, no gradient, no error counts them."""

import dataclasses

import numpy as np
import pytest
import torch
from rigs_fixture import normal
from test_models3d import SMALL

from ptri import config
from ptri.config import AugmentConfig
from ptri.data.augmentation import augment_crop
from ptri.evaluation import metrics
from ptri.models import losses
from ptri.models.lifter import Lifted, lifting_loss
from ptri.skeleton import H36M17
from ptri.structures import Keypoints
from ptri.training.orientation import Orientation
from ptri.training.task3d import RigTask

ROOT = H36M17.root
UNKNOWN = [H36M17.joints.index(name) for name in ("spine", "head")]
KNOWN = [joint for joint in range(17) if joint not in UNKNOWN]
LIMBS = [joint for joint in KNOWN if joint != ROOT]


def truth(batch=3):
    """Joints of some people, of whom two lack two joints and the last one has no known root."""
    joints = 300 * normal(batch, 17, 3) + torch.tensor([0.0, 0.0, 4000.0])
    joints[:, UNKNOWN] = torch.nan
    joints[-1, ROOT] = torch.nan
    return joints


def stated(batch=3):
    """An estimate (B, 17, 3) and its covariances, which want gradients."""
    factor = 20 * torch.eye(3) + 5 * normal(batch, 17, 3, 3, seed=2)
    estimate = 300 * normal(batch, 17, 3) + 40 * normal(batch, 17, 3, seed=1)
    estimate = estimate + torch.tensor([0.0, 0.0, 4000.0])
    return estimate.requires_grad_(), (factor @ factor.mT).requires_grad_()


def lifting(estimate, covariance, joints, root):
    """The lifter's loss of skeletons that the estimate and the covariances make."""
    sigma = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).sqrt()
    lifted = Lifted(estimate, estimate - estimate[:, ROOT, None], sigma, sigma / 20 - 1)
    xy = 1000 * estimate.detach()[..., :2] / estimate.detach()[..., 2:] + 128
    xy = xy + normal(*xy.shape, seed=5)
    K = torch.tensor([[1000.0, 0, 128], [0, 1000, 128], [0, 0, 1]]).expand(len(xy), 3, 3)
    keypoints = Keypoints(xy, torch.eye(2).expand(*xy.shape, 2), torch.ones(xy.shape[:-1]))
    return lifting_loss(lifted, joints, keypoints, K)


LOSSES = {
    "joint_l1": lambda e, c, j, root: losses.joint_l1(e, j, root),
    "joint_likelihood": losses.joint_likelihood,
    "joint_quantile": losses.joint_quantile,
    "lifting_loss": lifting,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_leave_unknown_joints_out(name):
    (estimate, covariance), joints = stated(), truth()
    value = LOSSES[name](estimate, covariance, joints, ROOT)
    value.sum().backward()
    assert torch.isfinite(value).all() and value[0] != 0
    for part in (estimate.grad, covariance.grad):
        if part is None:  # the loss has no use for covariances
            continue
        assert torch.isfinite(part).all()
        if name == "lifting_loss":  # the doubts about its keypoints remain
            continue
        assert not part[:, UNKNOWN].any() and not part[-1].any()
        assert part[:-1, LIMBS].flatten(2).any(-1).all()  # the control
    # What the truth of those joints would have been changes nothing.
    other = joints.clone()
    other[:-1, UNKNOWN] = 1e5
    filled = LOSSES[name](estimate, covariance, other, ROOT)
    assert (filled[:-1] - value[:-1]).abs().min() > 1e-3  # the control


def test_losses_of_known_joints_are_means_over_them():
    (estimate, covariance), joints = stated(), truth()
    smaller = losses.joint_l1(estimate[:, KNOWN], joints[:, KNOWN], KNOWN.index(ROOT))
    torch.testing.assert_close(losses.joint_l1(estimate, joints, ROOT), smaller)
    part = estimate[:, KNOWN], covariance[:, KNOWN], joints[:, KNOWN], KNOWN.index(ROOT)
    for loss in (losses.joint_likelihood, losses.joint_quantile):
        torch.testing.assert_close(loss(estimate, covariance, joints, ROOT), loss(*part))


def test_a_trunk_that_is_not_known_teaches_no_orientation():
    heads = Orientation([8, 8, 8, 8])
    maps = [normal(3, 8, 256 // s, 256 // s).float() for s in (4, 8, 16, 32)]
    joints3d, joints2d = truth(), 128 + 40 * normal(3, 17, 2, seed=4)
    joints2d[joints3d[..., :2].isnan()] = torch.nan
    joints3d, joints2d = joints3d.float(), joints2d.float()
    value = heads(maps, joints3d, joints2d, 256)
    value.sum().backward()
    assert (value[:2] > 0).all() and value[2] == 0
    assert all(torch.isfinite(weight.grad).all() for weight in heads.parameters())
    nobody = torch.full_like(joints3d, torch.nan), torch.full_like(joints2d, torch.nan)
    assert not heads(maps, *nobody, 256).any()


def test_errors_are_means_over_known_joints():
    (estimate, covariance), joints = stated(), truth()
    estimate, covariance = estimate.detach(), covariance.detach()
    wild = estimate.clone()
    wild[:, UNKNOWN] = 1e6
    for metric in (metrics.mpjpe, metrics.n_mpjpe, metrics.pa_mpjpe):
        error = metric(estimate, joints)
        assert torch.isfinite(error[:2]).all()
        torch.testing.assert_close(metric(wild, joints)[:2], error[:2])
    relative = (estimate - estimate[:, ROOT, None] - joints + joints[:, ROOT, None]).norm(dim=-1)
    expected = relative[:2, KNOWN].mean(1)
    torch.testing.assert_close(metrics.mpjpe(estimate, joints)[:2], expected)
    coverage = metrics.joint_coverage(estimate, covariance, joints)[:2]
    assert torch.equal(metrics.joint_coverage(wild, covariance, joints)[:2], coverage)
    assert torch.equal(coverage, (coverage * 14).round() / 14)  # of 14 joints beside the root


def test_a_step_from_images_is_finite():
    overrides = [
        *SMALL,
        "data.root=data/demo",
        "data.train_subjects=[1]",
        "data.test_subjects=[9]",
        "data.image_size=64",
        "data.workers=0",
        "train.batch_size=2",
        "train.true_start=true",
        "train.weight_region=1",
    ]
    task = RigTask(config.load(None, overrides))
    torch.manual_seed(0)
    model = task.build_model().train()
    batch = next(task.batches(0, 1))
    for part in (batch.joints3d, batch.joints2d):
        part[..., UNKNOWN, :] = torch.nan
    batch.visible[..., UNKNOWN] = False
    values = task.training_step(model, batch, 0)
    assert all(torch.isfinite(value).all() for value in values.values())
    values["loss"].mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert any(name.startswith("lifter.") for name in grads)
    assert any(name.startswith("fusion.") for name in grads)


def test_half_body_crops_need_known_joints():
    augment = dataclasses.replace(AugmentConfig(), half_body=1, scale=0, shift=0, rotation_deg=0)
    joints = np.full((17, 2), np.nan)
    for known in (0, 2, 17):
        joints[:known] = np.random.default_rng(0).uniform(0, 50, (known, 2))
        for seed in range(8):  # upper bodies and legs
            rng = np.random.default_rng(seed)
            centre, side, _ = augment_crop(np.array([100.0, 100.0]), 90.0, joints, augment, rng)
            assert np.isfinite([*centre, side]).all()
            assert (known == 17) == (centre.max() < 100)
