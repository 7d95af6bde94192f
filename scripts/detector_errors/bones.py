"""How long a detector draws each bone, over its true length."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.triangulation import robust_triangulation
from ptri.posterior.body import bone_vectors, load_body_prior
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints


def bone_ratio(keypoints: Keypoints, cameras: Cameras, joints: Tensor) -> Tensor:
    """Drawn over true lengths, for `posterior.bone_ratio`.

    Joints are triangulated robustly with the true cameras; of a bone's ratios over all frames the
    median counts, and left and right share it.

    Args:
        keypoints: (B, T, V, J, ...) px.
        cameras: truth; K (B, T, V, 3, 3) px, R and t (B, V, ...).
        joints: truth (B, T, J, 3) mm, in the cameras' world frame.

    Returns:
        (16,), in the order of `H36M17.bones`; NaN of bones that end at a joint that is not given.
    """
    drawn, body = robust_triangulation(keypoints, cameras)[0].joints3d, load_body_prior()
    drawn, truth = (x.double().flatten(0, 1) for x in (drawn, joints))
    ratio = (bone_vectors(drawn, body)[0] / bone_vectors(truth, body)[0]).log()
    return torch.cat([ratio, ratio[:, list(H36M17.flip_bones)]]).nanmedian(0).values.exp()
