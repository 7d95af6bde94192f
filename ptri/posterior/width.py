"""How much wider the posterior is than its likelihood says, because keypoints err together.

The likelihood takes keypoints' errors for independent, but for a bias of each view and joint. Real
detectors err alike where the person looks alike: at neighbouring joints, and as long as a posture
lasts. Between keypoints of joints i, j in frames t, u of one view the correlation is modelled as

    C = [(1 - a) I + a k(t, u)] x [(1 - b) I + b k(i, j)],    k = exp(-distance / LENGTH),

the distance of two frames being that of their postures, the mean over joints about their middle.
One frame repeated counts once. LENGTH was the same for all four detectors that were measured
(docs/rig_posterior.md); the shares a and b, zero where errors are independent, are told by the
residuals. Of what goes together in a whole image residuals show nothing, since the camera follows
it: there a known factor stands, the worth of an image. It is known roughly, so regions have the
tails of a Student-t law (`ptri.posterior.widened`).

The most probable cameras are still a good estimate, but their errors have the sandwich's covariance
``A^-1 M A^-1`` and not ``A^-1`` (Godambe 1960; White 1982): A is the information, M the variance of
the score under C. Samples are moved about their mean such that they have it, so that the estimate
stays ("open-faced sandwich", Shaby 2014).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.resection import square_root
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import (
    Bundle,
    Errors,
    misfits,
    noise_unit,
    normal_equations,
    person_centre,
    priors,
    projected_slopes,
    with_poses,
)
from ptri.posterior.motion import by_focal
from ptri.structures import MANY_FRAMES, Observations

LENGTH = 130.0  # mm
# What residuals keep of the correlation of errors, which joints and cameras follow: of few frames,
# and of `MANY_FRAMES` and more.
KEPT_OF_FEW, KEPT = 0.25, 0.5
# Pairs of like keypoints from which the residuals say more than what was known before.
USUAL_PAIRS, KNOWN_PAIRS = 2.0, 200.0
# Least worth of an image, by a detector nothing is known of: it is what residuals are smaller than
# stated, because what they lack the cameras may have followed.
USUAL_WORTH = 0.2


class Together(NamedTuple):
    """How the errors of N rigs go together."""

    frames: Tensor  # (N,) share a of the variance that lasts as long as a posture
    joints: Tensor  # (N,) share b that neighbouring joints have in common
    worth: Tensor  # (N,) of an image: one where joints do not go together at all
    excess: Tensor  # (N, D, D) variance of the cameras' score beyond what the keypoints told
    weights: Tensor | None = None  # (N, J) of the joints, see `joint_weights`; None: all one


@torch.no_grad()
def errors_together(
    observations: Observations,
    bundle: Bundle,
    errors: Errors,
    body: BodyPrior,
    worth: float | None = None,
    weights: Tensor | None = None,
) -> Together:
    """How the errors of N adjusted rigs go together; D displacements of the cameras.

    Args:
        worth: of an image, see `ptri.structures.Detector`; 1: errors are known to be independent.
        weights: (N, J) that the observations' information has been multiplied by, `joint_weights`.
    """
    if worth == 1:
        zero, num_cameras = torch.zeros_like(errors.scale2), bundle.num_cameras
        return Together(zero, zero, zero + 1, zero.new_zeros(len(zero), num_cameras, num_cameras))
    known_pairs = USUAL_PAIRS if worth is None else KNOWN_PAIRS
    worth = errors.scale2.clamp(USUAL_WORTH, 1.0) if worth is None else worth
    frames, joints = _likeness(bundle.joints)
    root, residual, weight = _whitened(observations, bundle, errors)
    slopes, by_joint, taken, information = _slopes(observations, bundle, errors, body, root)
    if weights is not None:  # errors of the stated size
        root = weights.sqrt()[:, None, None, :, None]
        residual, by_joint = residual / root, by_joint / root.unsqueeze(-1)
    off_frames, off_joints = (_of_others(kernel) for kernel in (frames, joints))
    kept = KEPT if frames.shape[1] >= MANY_FRAMES else KEPT_OF_FEW
    cameras = torch.linalg.pinv(information, hermitian=True)
    shares = []
    for of_frames in (True, False):
        other = off_frames if of_frames else off_joints
        product, pairs = _products(residual, weight, other, of_frames)
        # Residuals of independent errors are correlated too, by what the cameras ...
        spurious = slopes.flatten(1, 4).mT @ _mixed(slopes, other, of_frames).flatten(1, 4)
        spurious = (cameras * spurious).sum((1, 2))
        if not of_frames:  # ... and the joints follow.
            both = torch.einsum("ntvica,ntvjcb,nij->ntiajb", by_joint, by_joint, other)
            spurious = spurious + (taken * both.flatten(4, 5).flatten(2, 3)).sum((1, 2, 3))
        found = (product + spurious) / (2 * kept) + known_pairs
        shares.append((found / (pairs + known_pairs)).clamp(0.0, 1.0))
    factor = 1 + shares[1] * (1 / worth - 1)
    together = Together(*shares, 1 / factor, information, weights)
    return together._replace(excess=_excess(slopes, off_frames, off_joints, together))


def _excess(slopes: Tensor, off_frames: Tensor, off_joints: Tensor, together: Together) -> Tensor:
    """The variance (N, D, D) of the score beyond what errors that are independent, and as large as
    the joints' weights say, have."""
    a, b = (share[:, None, None, None, None, None] for share in together[:2])
    flat = slopes.flatten(1, 4)
    told = flat.mT @ flat
    if together.weights is not None:
        slopes = slopes * together.weights.sqrt()[:, None, None, :, None, None]
        flat = slopes.flatten(1, 4)
    mixed = slopes + a * _mixed(slopes, off_frames, True)
    mixed = mixed + b * _mixed(mixed, off_joints, False)
    return (flat.mT @ mixed.flatten(1, 4)) / together.worth[:, None, None] - told


@torch.no_grad()
def told_together(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior, together: Together
) -> tuple[Tensor, Tensor]:
    """What frames tell of the cameras whose errors go together as is known: the information
    (N, D, D), and the excess of the score's variance, of `Together`."""
    root, _, _ = _whitened(observations, bundle, errors)
    slopes, *_, information = _slopes(observations, bundle, errors, body, root)
    others = (_of_others(kernel) for kernel in _likeness(bundle.joints))
    return information, _excess(slopes, *others, together)


@torch.no_grad()
def joint_weights(observations: Observations, joints: Tensor, share: Tensor) -> Tensor:
    """Factors (N, J) on the information of N rigs' joints, of geometric mean one over those seen.

    Five joints of one head that err alike tell as much as one: a joint counts for the inverse of
    its row's sum in the joints' part of C.

    Args:
        joints: (N, T, J, 3) mm. share: (N,) b.
    """
    _, alike = _likeness(joints)
    seen = (observations.inlier > 0).to(joints).mean((1, 2))  # (N, J)
    others = (alike @ seen.unsqueeze(-1)).squeeze(-1) - seen
    log_weight = -torch.log1p(share.unsqueeze(1) * others)
    count = seen.sum(1, keepdim=True).clamp_min(1e-9)  # 1e-9 guards a rig that nobody sees
    return (log_weight - (log_weight * seen).sum(1, keepdim=True) / count).exp()


@torch.no_grad()
def frames_worth(observations: Observations, bundle: Bundle, errors: Errors) -> Tensor:
    """How many independent frames one of N rigs' frames is worth, (N,) in [1 / T, 1].

    Errors that last as long as a posture have a mean over T frames that is as large as that of
    ``T^2 / sum C`` independent ones; a bias must be larger to be one.
    """
    frames, _ = _likeness(bundle.joints)
    _, residual, weight = _whitened(observations, bundle, errors)
    other = _of_others(frames)
    product, pairs = _products(residual, weight, other, True)
    # 1e-9 guards a rig that nobody sees.
    share = (product / (2 * KEPT) / pairs.clamp_min(1e-9)).clamp(0.0, 1.0)
    return 1 / (1 + share * other.mean(1).sum(1))


def widening(information: Tensor, excess: Tensor, least: Tensor) -> Tensor:
    """Matrices (N, D, D) that take deviations of covariance ``A^-1`` to ``A^-1 (A + E) A^-1``.

    Args:
        information, excess: (N, D, D), A and E. least: (D,) added to A's diagonal.
    """
    information = information + torch.diag(least)
    chol, failed = torch.linalg.cholesky_ex(information)
    eye = torch.eye(len(least), dtype=chol.dtype, device=chol.device)
    inverse = torch.linalg.solve_triangular(chol, eye.expand_as(chol), upper=False)
    value, vector = torch.linalg.eigh(eye + inverse @ excess @ inverse.mT)
    root = vector * value.clamp_min(1.0).sqrt().unsqueeze(-2) @ vector.mT
    matrix = inverse.mT @ root @ chol.mT
    usable = (failed == 0) & torch.isfinite(matrix).all(-1).all(-1)
    return torch.where(usable[:, None, None], matrix, eye)


def num_alike(joints: Tensor, together: Together) -> tuple[Tensor, Tensor]:
    """How many frames (N,), and how many joints (N,) of an image, err as one: mean row sums of C.

    Args:
        joints: (N, T, J, 3) mm.
    """
    shares = together.frames, together.joints
    sums = (kernel.sum((1, 2)) / kernel.shape[1] for kernel in _likeness(joints))
    return tuple(1 + share * (each - 1) for share, each in zip(shares, sums))


def _likeness(joints: Tensor) -> tuple[Tensor, Tensor]:
    """k of frames (N, T, T), and of joints (N, J, J) at their mean distance; of (N, T, J, 3) mm."""
    posture = joints - joints.mean(2, keepdim=True)
    apart = [torch.cdist(p, p) for p in posture.movedim(2, 0)]  # J times (N, T, T)
    between = torch.cdist(joints, joints).mean(1)
    return (-torch.stack(apart).mean(0) / LENGTH).exp(), (-between / LENGTH).exp()


def _of_others(kernel: Tensor) -> Tensor:
    """A kernel (N, n, n) without its diagonal of ones."""
    return kernel - torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)


def _products(
    residual: Tensor, weight: Tensor, other: Tensor, of_frames: bool
) -> tuple[Tensor, Tensor]:
    """Sums (N,) of products of residuals of other frames or joints times how alike these are, and
    what the sums would be if a variance of one went together."""
    root = weight.sqrt()
    product = residual * _mixed(residual, other, of_frames)
    pairs = root * _mixed(root, other.square(), of_frames)
    return product.flatten(1).sum(1), pairs.flatten(1).sum(1)


def _mixed(value: Tensor, kernel: Tensor, of_frames: bool) -> Tensor:
    """Values (N, T, V, J, ...) summed with a kernel over frames or over joints."""
    rule = "nst,ntvj...->nsvj..." if of_frames else "nij,ntvj...->ntvi..."
    return torch.einsum(rule, kernel, value)


def _whitened(
    observations: Observations, bundle: Bundle, errors: Errors
) -> tuple[Tensor, Tensor, Tensor]:
    """Root of the information (N, T, V, J, 2, 2) that every keypoint has at its weight, residuals
    (N, T, V, J, 2) times it with the biases left in, and the weights (N, T, V, J)."""
    residual, _, weight = misfits(bundle, observations, errors)
    if errors.bias.shape[2]:
        residual = residual - errors.bias[:, None]
    residual = residual * noise_unit(observations)[..., None, None]
    scale = (weight * (errors.curvature / errors.scale2)[:, None, None, None]).sqrt()
    root = square_root(observations.information) * scale[..., None, None]
    return root, (root @ residual.unsqueeze(-1)).squeeze(-1), weight


def _slopes(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior, root: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes (N, T, V, J, 2, D) of the cameras' score with each whitened error, the rest following.

    Returns:
        Beside them slopes (N, T, V, J, 2, 3) of the whitened residual with its joint, the inverse
        information (N, T, 3J, 3J) of the joints, the cameras' information (N, D, D).
    """
    V, J = observations.inlier.shape[2:]
    F, num_bones, num_cameras = bundle.log_focal.shape[1], len(body.mean), bundle.num_cameras
    system = normal_equations(bundle, observations, errors, body)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(system.frames)[0])
    gain = system.coupling @ inverse  # (N, T, G, 3J)
    full = system.shared - (gain @ system.coupling.mT).sum(1)
    full = full + priors(bundle, errors, body)[0]
    cameras, rest = slice(0, num_cameras), slice(num_cameras, None)
    towards = torch.linalg.solve_ex(full[:, rest, rest], full[:, rest, cameras])[0]
    eye = torch.eye(num_cameras, dtype=full.dtype, device=full.device)
    follow = torch.cat([eye.expand(len(full), -1, -1), -towards], dim=1)  # (N, G, D)

    camera, projection = projected_slopes(bundle)
    rows = root @ projection  # (N, T, V, J, 2, 3), camera frame
    by_joint = rows @ bundle.R[:, None, :, None]
    motion = with_poses(rows, camera, bundle)
    poses = follow[:, F:num_cameras].unflatten(1, (V - 1, 6))
    moved = torch.einsum("ntvjcm,nvmd->ntvjcd", motion, poses)
    followed = (gain.mT @ follow[:, None]).unflatten(2, (J, 3))  # (N, T, J, 3, D)
    slopes = -torch.einsum("ntvjck,ntjkd->ntvjcd", by_joint, followed)
    slopes[:, :, 1:] += moved
    if F:
        centre = person_centre(bundle)[:, :, None, None]
        own = by_focal(camera.transpose(1, 2), centre).transpose(1, 2)
        slopes += (rows @ own.unsqueeze(-1)) * follow[:, None, :F, None, None]
    if errors.bias.shape[2]:
        biases = follow[:, num_cameras + num_bones :].unflatten(1, (V, J, 2))
        unit = noise_unit(observations)[..., None, None, None]
        slopes = slopes + torch.einsum("ntvjce,nvjed->ntvjcd", root * unit, biases)
    return slopes, by_joint, inverse, follow.mT @ full @ follow
