"""What is known of a 2D detector, put to use: its precision, and the bones that it draws."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.rays import normalise
from ptri.posterior.body import BodyPrior, load_body_prior
from ptri.skeleton import H36M17
from ptri.structures import MANY_FRAMES, Detector, Keypoints, Observations

NUM_JOINTS = len(H36M17.joints)
SLACK_GROWTH = 1 / 3  # of a bone's slack with the number of frames


def observe(
    keypoints: Keypoints, K: Tensor, detector: Detector, persons: Tensor | None = None
) -> Observations:
    """Keypoints (B, T, V, J, ...) px, normalised, in float64, no less precise than is known.

    A network that is trained to cover its own gross errors reports more than the noise of its good
    keypoints; gross errors have their own part in the posterior's likelihood. In a few frames they
    cannot be told from noise: there what it reports stands.

    Args:
        K: (B, T, V, 3, 3) px.
        persons: (B, T, P) as in `Observations`; None: one person.
    """
    keypoints = Keypoints(*(value.double() for value in keypoints))
    if detector.overstated and keypoints.xy.shape[1] >= MANY_FRAMES:
        factor = keypoints.covariance.new_ones(keypoints.covariance.shape[-3])
        factor[:NUM_JOINTS] = keypoints.covariance.new_tensor(detector.overstated) ** -2
        covariance = keypoints.covariance * factor[:, None, None]
        keypoints = keypoints._replace(covariance=covariance)
    observations = normalise(keypoints, K.double())
    return observations if persons is None else observations._replace(persons=persons)


def body_prior(
    options: PosteriorConfig, detector: Detector, observations: Observations
) -> BodyPrior:
    """The prior on the observed persons' bones as the detector draws them.

    Bones bend the posterior of a limb's direction, and what Laplace's approximation makes of that
    adds up over frames, while the cameras' uncertainty shrinks with them. So the more frames, the
    less a bone is held to its length.
    """
    xy, num_persons = observations.xy, observations.persons.shape[-1]
    slack = options.bone_slack * xy.shape[1] ** SLACK_GROWTH
    numbers = slack, options.bone_definition, 0.0, tuple(detector.bone_ratio), options.children
    return _prior_on(xy.device, xy.dtype, xy.shape[3], *numbers, num_persons)


@functools.lru_cache(maxsize=64)
def _prior_on(device: torch.device, dtype: torch.dtype, *numbers: Any) -> BodyPrior:
    """`load_body_prior`, on a device; made once, because the CPU waits for copies to a GPU."""
    with torch.inference_mode(False):
        return load_body_prior(*numbers).to(device, dtype)
