"""Fused limbs beside triangulated ones: how steady bones are, and what keypoints are left."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import Solution, clear_keypoints, residuals, triangulate
from ptri.skeleton import H36M17, linear_map, map_joints

_ENDS = ("shoulder", "elbow", "wrist", "hip", "knee", "foot")
LIMBS = [i for i, name in enumerate(H36M17.joints) if name.endswith(_ENDS)]  # the same joints in
# every detector's set
BONES = [(a, b) for a, b in H36M17.bones if a in LIMBS and b in LIMBS]
FEWEST_FRAMES = 3


def limb_figures(
    recording: Recording, solution: Solution, clear: float, robust_at: float
) -> dict[str, float]:
    """Figures of the joints fused, and triangulated without learning with the same cameras.

    Args:
        clear: keypoints of at least this confidence count.
        robust_at: share of the person's extent in a view at which the robust triangulation halves
            a keypoint's weight.

    Returns:
        By method ("fused", "robust", "least_squares"), over the frames and joints that all have:
        ``limb_length_std_percent/...``, the standard deviation over frames of a bone's length over
        its mean, mean of the limbs' eight bones; ``limb_reprojection_px_median/...``. NaN where
        fewer than three frames have both ends of a bone.
    """
    views, R, t = solution.views, solution.R.double(), solution.t.double()
    xy = clear_keypoints(recording, views, clear)
    xy = torch.from_numpy(map_joints(xy.numpy(), linear_map(recording.skeleton, H36M17)))
    xy, K = xy[:, :, LIMBS], torch.tensor(recording.K[views])
    methods = {
        "fused": solution.prediction.joints3d.double()[:, LIMBS],
        "robust": triangulate(xy, K, R, t, robust_at),
        "least_squares": triangulate(xy, K, R, t),
    }
    known = torch.stack([m.isfinite().all(-1) for m in methods.values()]).all(0)  # (T, 12)
    figures = {}
    for name, joints in methods.items():
        joints = joints.where(known.unsqueeze(-1), torch.nan)
        error = residuals(joints, xy, K, R, t)
        figures[f"limb_length_std_percent/{name}"] = 100 * _unsteadiness(joints)
        figures[f"limb_reprojection_px_median/{name}"] = float(error.nanmedian())
    return figures


def limb_lines(figures: dict[str, float]) -> list[str]:
    """`limb_figures` in words."""
    lines = [
        f"{'limbs, over the same frames':<32}{'bone length, std':>18}{'reprojection, median':>22}"
    ]
    for words, name in (
        ("fused", "fused"),
        ("robust triangulation", "robust"),
        ("least-squares triangulation", "least_squares"),
    ):
        length = f"{figures[f'limb_length_std_percent/{name}']:.1f} %"
        error = f"{figures[f'limb_reprojection_px_median/{name}']:.1f} px"
        lines.append(f"  {words:<30}{length:>18}{error:>22}")
    return lines


def _unsteadiness(joints: Tensor) -> float:
    """Mean over the bones of the standard deviation of (T, 12, 3)'s lengths over their mean."""
    ends = torch.tensor([[LIMBS.index(a), LIMBS.index(b)] for a, b in BONES])
    length = (joints[:, ends[:, 0]] - joints[:, ends[:, 1]]).norm(dim=-1)  # (T, 8)
    shares = []
    for bone in length.T:
        bone = bone[bone.isfinite()]
        if len(bone) < FEWEST_FRAMES:
            return float("nan")
        shares.append(float(bone.std() / bone.mean()))
    return sum(shares) / len(shares)
