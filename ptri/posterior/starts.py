"""Candidate rigs to start from: skeletons lifted from single views, and classical means.

Lifted skeletons are aligned between the views (Procrustes). Pooled frames give five-point relative
poses and resections: they need no lifter and get better with every frame; the scale comes from the
bones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptri.geometry.alignment import align_views
from ptri.geometry.epipolar import RigCandidate, five_point_rigs
from ptri.posterior.body import BodyPrior, bone_vectors
from ptri.posterior.equations import Bundle
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, take, where

NUM_PAIRS = 3  # seed pairs tried for each rig


def rig_starts(
    skeletons: Tensor,
    weight: Tensor,
    body: BodyPrior,
    mirrored: bool = True,
) -> Bundle:
    """Candidate rigs from lifted skeletons, by Procrustes alignment between the views.

    One candidate per hub view (all views aligned to it); if asked, one per view with that view's
    skeleton mirrored in depth (what a lifter gets wrong most).

    Args:
        skeletons: (B, T, V, 17, 3) mm in the camera frames.
        weight: (B, T, V, 17) trust in each joint, >= 0.

    Returns:
        (B, C, ...) bundles of 17 joints, C = V, or 2 V if mirrored.
    """
    B, _, V = skeletons.shape[:3]
    weight = weight + 1e-6  # a view without any joint still aligns to something
    candidates = [align_views(skeletons, weight, hub) for hub in range(V)]
    if mirrored:
        root = skeletons[..., H36M17.root, None, :]
        toward = root / root.norm(dim=-1, keepdim=True)
        depth = ((skeletons - root) * toward).sum(-1, keepdim=True)
        reflected = skeletons - 2 * depth * toward
        for view in range(V):
            chosen = torch.arange(V, device=skeletons.device) == view
            flipped = torch.where(chosen[:, None, None], reflected, skeletons)
            candidates.append(align_views(flipped, weight, 0 if view else min(1, V - 1)))
    R, t, joints = (torch.stack(parts, dim=1) for parts in zip(*candidates))
    lengths = body.mean.to(R).expand(B, R.shape[1], -1)
    return Bundle(R, t, t.new_zeros(*t.shape[:2], 0), joints, lengths)


def pooled_starts(
    keypoints: Keypoints, K: Tensor, like: Bundle, body: BodyPrior, count: int = 1, seed: int = 0
) -> Bundle:
    """Candidates (B, count, ...) by classical means.

    Args:
        keypoints: (B, T, V, J, ...) px; K: (B, T, V, 3, 3) px.
        like: (B, C, ...) other candidates: the first stands in where the classical way finds none,
            and its joints where fewer than two views see one.
    """
    J = like.joints.shape[-2]
    xy = keypoints.xy[..., :J, :].detach().cpu().double().numpy()
    confidence = keypoints.confidence[..., :J].detach().cpu().double().numpy()
    intrinsics = K.detach().cpu().double().numpy()
    parts = []
    for rig in range(len(xy)):  # RANSAC has no batches
        found = five_point_rigs(
            xy[rig], intrinsics[rig], confidence[rig], seed, num_pairs=NUM_PAIRS
        )
        stand_in = take(like, (rig, 0))
        every = [_bundle(one, stand_in, body) for one in found[:count]]
        parts.extend(every + [stand_in] * (count - len(every)))
    return Bundle(*(torch.stack(values).unflatten(0, (-1, count)) for values in zip(*parts)))


def _bundle(found: RigCandidate, stand_in: Bundle, body: BodyPrior) -> Bundle:
    """A candidate at the size of its bones."""
    kind = {"dtype": stand_in.t.dtype, "device": stand_in.t.device}
    R, t, joints = (torch.as_tensor(np.asarray(v), **kind) for v in found[:3])
    # In thousands, so that no bone falls below the guard against joints that coincide.
    joints, t = 1000 * joints, 1000 * t
    length, _ = bone_vectors(joints, body)  # (T, bones)
    ratio = (body.mean - length.log()).nanmedian()
    factor = torch.where(torch.isfinite(ratio), ratio.exp(), torch.ones_like(ratio))
    joints, t = joints * factor, t * factor
    middle = joints.nanmean((0, 1))
    relative = stand_in.joints - stand_in.joints.mean((-2, -3))
    joints = torch.where(torch.isnan(joints), middle + relative, joints)
    finite = torch.isfinite(joints).all() & torch.isfinite(t).all()
    return where(finite, stand_in._replace(R=R, t=t, joints=joints), stand_in)
