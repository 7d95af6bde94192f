"""Rigs and people with known truth, on generated scenes, and what an estimate of them must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import ptri
from ptri import config
from ptri.evaluation.metrics import mahalanobis_square
from ptri.geometry.cameras import project, transform
from ptri.geometry.rays import normalise
from ptri.geometry.rotations import rotation_angle, so3_exp, so3_log
from ptri.people.scenes import Scene, SceneNumbers, generate_batch
from ptri.posterior.body import load_body_prior
from ptri.posterior.equations import Bundle, person_centre
from ptri.posterior.motion import move_cameras
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints, Observations, Views, take, tree_map

BODY = load_body_prior(spread=0.05)
FLIP = torch.tensor(H36M17.flip)


def exact_scene(
    batch=8, views=4, frames=1, seed=0, noise=0.004, missing=0.05, fps=2.0, family="ring", extra=()
) -> Scene:
    """Scenes whose noise (a share of the person's height) is exactly what the covariances say."""
    chosen = [f"families=[{family}]", "held_out_families=[]", f"errors.noise={noise}"]
    chosen += [f"errors.missing_rate={missing}", *extra]
    settings = ["run.name=test", *(f"generated.{setting}" for setting in chosen)]
    numbers = SceneNumbers(fps=fps, max_truncated=0.0)
    options = config.load(None, settings)
    return generate_batch(options, seed, 0, batch, views, frames, exact=True, numbers=numbers)


def gaussian_scene(*arguments, **options):
    """Keypoints, K, cameras and joints of an `exact_scene`; float64."""
    return tree_map(Tensor.double, tuple(exact_scene(*arguments, **options)[:4]))


def skeletons(cameras, joints) -> Tensor:
    """Joints (B, T, V, J, 3) mm in every view's frame."""
    return transform(joints.unsqueeze(2), cameras.R[:, None], cameras.t[:, None])


def normal(*shape, seed=0) -> Tensor:
    """Standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def random_rotations(*shape) -> Tensor:
    return so3_exp(3.0 * normal(*shape, 3, seed=2))


def observed(batch=8, views=4, frames=1, seed=0, **options):
    keypoints, K, cameras, joints = gaussian_scene(batch, views, frames, seed, **options)
    return normalise(keypoints, K), cameras, joints


def nothing_seen(frames=1, views=2, joints=17) -> Observations:
    keypoints = torch.full((1, frames, views, joints, 2), torch.nan, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64).expand(*keypoints.shape, 2)
    K = torch.eye(3, dtype=torch.float64).expand(1, frames, views, 3, 3)
    return normalise(Keypoints(keypoints, eye, keypoints[..., 0]), K)


def exact(R, t):
    """Views whose K is exact."""
    return Views(R, t, t.new_zeros(*t.shape[:-2], 0))


def starts_near(cameras, joints, degrees=10.0, millimetres=60.0, count=2, seed=0):
    """Candidate bundles (B, count, ...): the truth, moved by random rotations and noise."""
    generator = torch.Generator().manual_seed(seed)
    B, V = cameras.t.shape[:2]

    def repeat(value):
        return value[:, None].expand(-1, count, *value.shape[1:])

    truth = Bundle(*exact(cameras.R, cameras.t), joints, None)
    size = torch.tensor([degrees * torch.pi / 180 / 3**0.5] * 3 + [millimetres] * 3)
    step = torch.randn(B, count, V - 1, 6, generator=generator, dtype=torch.float64) * size
    centre = repeat(person_centre(truth))
    views = Views(*(repeat(part) for part in truth.views))
    views = move_cameras(views, centre, step.flatten(2))
    shape = (B, count, *joints.shape[1:])
    noise = millimetres * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Bundle(*views, repeat(joints) + noise, BODY.mean.expand(B, count, -1))


def start_near(cameras, joints, degrees):
    """One start of each rig, (B, ...)."""
    return Bundle(*(part[:, 0] for part in starts_near(cameras, joints, degrees, count=1)))


# --- what goes wrong with a view -----------------------------------------------------------------


def exchanged(keypoints, view, joints=("",), frames=slice(None)):
    """Keypoints with left and right exchanged of a view's joints, named by how they end."""
    chosen = torch.tensor([name.endswith(joints) for name in H36M17.joints])
    order = torch.where(chosen, FLIP, torch.arange(17))
    parts = tree_map(torch.clone, keypoints)
    for part in parts:
        part[:, frames, view] = part[:, frames, view][:, :, order]
    return parts


def broken(keypoints, K, view, kind):
    """Keypoints with one view exchanged, mirrored, shifted by 3 frames, or of other people."""
    spoiled = tree_map(torch.clone, keypoints)
    if "exchanged" in kind:
        spoiled = exchanged(keypoints, view)
    xy, covariance, confidence = spoiled
    if "mirrored" in kind:
        xy[:, :, view, :, 0] = 2 * K[:, :, view, None, 0, 2] - xy[:, :, view, :, 0]
        covariance[:, :, view, :, 0, 1] *= -1
        covariance[:, :, view, :, 1, 0] *= -1
    if kind == "shifted":
        xy[:, 3:, view], xy[:, :3, view] = keypoints.xy[:, :-3, view], torch.nan
    if kind == "another person":
        xy[:, :, view] = xy.roll(1, 0)[:, :, view]
        confidence[:, :, view] = confidence.roll(1, 0)[:, :, view]
    return spoiled


# --- one rig of T frames, for `ptri.estimate_rig` ------------------------------------------------


class Truth(NamedTuple):
    """Keypoints of one rig with independent Gaussian noise, and the truth."""

    xy: Tensor  # (T, V, 17, 2) px
    K: Tensor  # (V, 3, 3)
    confidence: Tensor  # (T, V, 17)
    covariance: Tensor  # (T, V, 17, 2, 2)
    R: Tensor  # (V, 3, 3)
    t: Tensor  # (V, 3) mm
    joints: Tensor  # (T, 17, 3) mm


def scene(frames=4, views=4, seed=0, **options) -> Truth:
    made = gaussian_scene(1, views, frames, seed, extra=["errors.definition_mm=0"], **options)
    (xy, covariance, confidence), K, cameras, joints = take(made, 0)
    return Truth(xy, K[0], confidence, covariance, cameras.R, cameras.t, joints)


def estimate(truth: Truth, **options):
    return ptri.estimate_rig(*truth[:4], **options)


def seen_from(cameras: Cameras, joints: Tensor, noise: float) -> Tensor:
    """Keypoints (T, V, J, 2) px of joints (T, J, 3), with Gaussian noise of so many px."""
    xy = project(joints, cameras)
    return xy + noise * normal(*xy.shape)


def rotation_error_deg(estimate, truth: Truth) -> Tensor:
    """Rotation errors (V,) of the cameras against the reference."""
    return torch.rad2deg(rotation_angle(estimate.R.mT @ truth.R))


def deviation(estimate, R: Tensor) -> Tensor:
    """How far rotations (V - 1, 3, 3) of views 1.. lie from an estimate, in its own standard
    deviations: root mean square over the three axes; about 1 for a true rotation."""
    w = so3_log(estimate.R[1:].mT @ R)
    # 1e-4 rad: what two runs may differ by where both are sure.
    cov = estimate.rotation_cov[1:] + 1e-8 * torch.eye(3, dtype=w.dtype)
    return (mahalanobis_square(w, cov) / 3).sqrt()


def rotation_std(estimate) -> Tensor:
    """Of each view (V,), rad."""
    return estimate.rotation_cov.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()


def is_lawful(estimate) -> bool:
    """Finite; rotations are rotations; covariances positive semidefinite; weights sum to one."""
    parts = (
        estimate.R, estimate.t, estimate.joints3d, estimate.joints3d_covariance,
        estimate.rotation_cov, estimate.t_cov, *estimate.posterior,
    )  # fmt: skip
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        return False
    eye = torch.eye(3, dtype=torch.float64)
    orthogonal = (estimate.R @ estimate.R.mT - eye).abs().max() < 1e-6
    proper = (torch.linalg.det(estimate.R) > 0).all()
    positive = torch.linalg.eigvalsh(estimate.joints3d_covariance).min() > 0
    spread = torch.linalg.eigvalsh(estimate.rotation_cov).min() > -1e-12
    one = (torch.logsumexp(estimate.posterior.log_weights, 0)).abs().max() < 1e-6
    return bool(orthogonal & proper & positive & spread & one)
