"""`ptri.estimate_rig`: 2D keypoints to cameras and joints, in the steps of `ptri.rig.estimate`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ptri.models.weights import find_model
from ptri.rig.advice import advise
from ptri.rig.arrays import picture_sizes
from ptri.rig.check import check_numbers, doubt_input
from ptri.rig.estimate import solve_cameras
from ptri.rig.known import KnownCameras, check_known, known_from, solve_known
from ptri.rig.lenses import Lenses
from ptri.rig.persons import check_persons
from ptri.rig.result import RigEstimate, together, with_joints
from ptri.rig.scale import known_length
from ptri.skeleton import Skeleton


def estimate_rig(
    xy,
    K=None,
    confidence=None,
    covariance=None,
    *,
    skeleton: str | Sequence[str] | Skeleton = "h36m17",
    num_samples: int = 512,
    num_iterations: int = 4,
    scale: Mapping[str, object] | None = None,
    size=None,
    K_std: float | Sequence[float] | None = None,
    camera: str | Sequence[str | None] | None = None,
    group: Sequence[Hashable] | None = None,
    children: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    max_frames: int = 50,
    model: nn.Module | str | Path | None = None,
    person: Sequence[Hashable] | None = None,
    prior: KnownCameras | RigEstimate | None = None,
    advice: bool = False,
) -> RigEstimate:
    """Poses of static cameras, and a person's joints, from 2D keypoints of their images.

    Args:
        xy: (T, V, J, 2) px in undistorted images, NaN = not seen; NumPy or torch. T >= 1 frames in
            order of time, V >= 2 views, which run in step. Of P persons who are in the pictures
            together (T, V, P, J, 2), the same person at the same place in all frames and views.
        K: (V, 3, 3) intrinsics, px; integer pixel coordinates are pixel centres. None: not known;
            then give ``size`` and, where known, ``camera``. What the focal lengths turned out to be
            is in the estimate.
        confidence: (T, V, J) in [0, 1], the chance that the keypoint is the joint; None: 1.
        covariance: (T, V, J, 2, 2) px^2; None: circular, 3 % of the person's extent in the view.
        skeleton: "h36m17", "coco17", "body25", "body25b", "mpii16" and others of
            `ptri.skeleton.SKELETONS`, or J joint names. Joints that are none of Human3.6M's take
            part in the geometry.
        num_samples, num_iterations: of the adaptive importance sampling.
        scale: a known length, ``{"subject_height": mm}`` (standing; of several persons one's,
            ``{"subject_height": (label, mm)}``) or ``{"camera_distance": (view, view, mm)}``; None:
            the lengths of human bones.
        size: (V, 2) or (2,) px, width and height of the pictures. Beside K it serves only to notice
            mistakes in K and xy; None: the principal points are taken to be in the middle.
        K_std: relative standard deviation of the focal lengths, one or one for each view; 0: K is
            exact; None: 1 % of a given K, of a guessed one by what is known of the camera.
        camera: devices by name, "iPhone14,5", "iPhone 13" or just "iPhone" (`ptri.rig.lenses`),
            one or one for each view; None: not known. Views of one model have like focal lengths.
        group: a label for each view; views of one label have like focal lengths. None: by their
            devices.
        children: how likely the person is a child of 4 to 14 years, 0 to 1. Proportions then tell
            the size; at 0 a child comes out 10 to 20 % too tall, and the rig with it.
        seed: of the Monte-Carlo noise; equal seeds give equal bits on a machine.
        device: where to compute; None: where xy is.
        max_frames: the cameras come from at most so many frames, chosen by information
            (`ptri.rig.frames`); joints are given for all.
        model: a `ptri.models.PoseModel` or a file of its weights; None: the shipped ones.
        person: who is in each of T frames: labels of people who came one after the other, or, of
            xy with a dimension of persons, one label for each of them; None: one person, or 0 to
            P - 1. Everybody has bones of his own.
        prior: where cameras were before: `ptri.KnownCameras`, or an earlier estimate of the same
            views. Which have moved since is in the estimate (``moved``); the others' poses count,
            and where they are exact they are the answer.
        advice: also say what to film for cameras that are known better (`ptri.rig.advice`).

    Returns:
        The estimate, always finite. Look at ``accepted`` and ``reason`` before use: where too
        little was seen the cameras are draws from the prior and the covariances say so.

    Raises:
        ValueError: input of a wrong shape or type, or impossible values; the message says what,
            where, what was expected and how to mend it.
    """
    # 1 check the input
    lenses = Lenses(size, K_std, camera, group)
    given = check_persons(xy, K, confidence, covariance, skeleton, device, lenses, person)
    doubt = doubt_input(given, size)
    known = known_length(scale, given.K.shape[1], given.labels)
    numbers = check_numbers(num_samples, num_iterations, children, seed, max_frames)
    model = find_model(model, given.K.device)
    # 2 to 7
    if prior is None:
        solved = solve_cameras(model, given, *numbers, known, doubt=doubt)
    else:
        prior = known_from(prior) if isinstance(prior, RigEstimate) else prior
        cameras = check_known(prior, given.K.shape[1], given.K.device)
        solved = solve_known(model, given, *numbers, known, cameras, doubt=doubt)
    solved.scale.refuse_unmeasured()
    # 8
    estimate = with_joints(model, solved, given)
    if advice:
        sizes = None if size is None else picture_sizes(size, len(estimate.R), given.K.device)
        estimate = estimate._replace(advice=advise(solved, given, sizes))
    return together(estimate, len(given.labels)) if getattr(xy, "ndim", 4) == 5 else estimate
