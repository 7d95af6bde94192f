"""Do keypoints, K and the pictures' sizes go together? Told from the input alone.

Nearly all mistakes in K look like another pose of the camera: where the optical axis meets the
picture like a turn, the focal length like a distance. Residuals hardly show them
(docs/mistakes.md). But keypoints lie inside the picture, the principal point is near its middle, a
person does not stay in one corner, and no two cameras see the same to the last digit.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ptri.skeleton import H36M17
from ptri.structures import MANY_FRAMES
from ptri.verdict.verdict import Code, Verdict

LEAST_POINTS = 12  # of a view; with fewer nothing is said
MARGIN = 0.05  # of the picture's size; a detector may place a joint that far outside
MOST_OUTSIDE = 0.1  # share of a view's keypoints
# Nearly all keypoints are left of and above the first share of the picture, half of them of the
# second.
CORNER, NEARLY_ALL, USUAL = 0.505, 0.98, 0.41
OFF_MIDDLE = 0.15  # of the picture's size; lenses are off by some hundredths
# Share of the frames in which the feet are above the shoulders, in every view: one camera may hang.
UPSIDE_DOWN = 0.8


@torch.no_grad()
def doubt_pictures(xy: Tensor, seen: Tensor, K: Tensor, size: Tensor | None) -> Verdict | None:
    """What speaks against the keypoints and intrinsics of one rig; None: nothing.

    Args:
        xy: (T, V, J, 2) px; the first 17 joints are Human3.6M's. seen: (T, V, J) bool.
        K: (V, 3, 3) px.
        size: (V, 2) px, width and height of the pictures; None: such that the principal point
            stands in the middle.
    """
    xy = torch.where(seen[..., None], xy, torch.nan).transpose(0, 1)  # (V, T, J, 2)
    for first, second in combinations(range(len(xy)), 2):
        if int((xy[first] == xy[second]).all(-1).sum()) >= LEAST_POINTS:
            return Verdict(Code.SAME_KEYPOINTS, first, second)
    points, centre = xy.flatten(1, 2), K[:, :2, 2]  # (V, T J, 2), (V, 2)
    count = seen.sum((0, 2))
    enough = count >= LEAST_POINTS
    # Coordinates may count from the middle of the picture: then its size is not known.
    at_zero = centre.abs().amax(-1) < 1.0
    least = points.nanquantile(1 - NEARLY_ALL, dim=1).amin(-1)
    beside = at_zero & (least >= 0)
    if size is None:
        size, enough = 2 * centre + 1, enough & (~at_zero | beside)
    size = size.clamp_min(1.0)
    share = (points + 0.5) / size[:, None]
    off = ((centre + 0.5) / size - 0.5).abs().amax(-1)
    outside = ((share < -MARGIN) | (share > 1 + MARGIN)).any(-1).sum(1) / count.clamp_min(1)
    reach, usual = (share.nanquantile(level, dim=1).amax(-1) for level in (NEARLY_ALL, 0.5))
    for code, value, bad, place in (
        (Code.PRINCIPAL_POINT, off, beside | (off > OFF_MIDDLE), centre),
        (Code.OUTSIDE, outside, outside > MOST_OUTSIDE, size),
        (Code.CORNER, -reach, (reach < CORNER) & (usual < USUAL), size),
    ):
        if bool((bad & enough).any()):
            view = int(torch.where(bad & enough, value, -torch.inf).argmax())
            x, y = place[view].tolist()
            return Verdict(code, view, value=float(value[view]), place=(x, y))
    if xy.shape[1] >= MANY_FRAMES and bool((_upside_down(xy) > UPSIDE_DOWN).all()):
        return Verdict(Code.UPSIDE_DOWN)
    return None


def _upside_down(xy: Tensor) -> Tensor:
    """Share (V,) of the frames of keypoints (V, T, J, 2) in which feet are above shoulders."""
    sides, parts = ("left", "right"), ("foot", "shoulder")
    pairs = ([H36M17.joints.index(f"{side}_{part}") for side in sides] for part in parts)
    feet, shoulders = (xy[:, :, pair].nanmean(-2) for pair in pairs)  # (V, T, 2)
    up = feet - shoulders
    # Nearer to the vertical than to the horizontal: who lies is neither.
    down = up[..., 1] < -up[..., 0].abs()  # False for NaN
    return down.sum(1) / torch.isfinite(up).all(-1).sum(1).clamp_min(1)
