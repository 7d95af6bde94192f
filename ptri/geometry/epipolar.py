"""Rigs by classical means: five-point relative pose of two views, resection of the others.

All frames' joints of a pair of views vote for one essential matrix (a rig does not move). The
other views follow one by one, the view that sees most triangulated points first, by perspective-n-
point with RANSAC. Several seed pairs give several candidates. numpy and OpenCV, one rig at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

MIN_POINTS = 6  # fewest common points for a pair's essential matrix, or for a view's resection
IRLS_ITERATIONS = 5
_CONFIDENCE = 0.9999  # of RANSAC
_MAX_TRIALS = 2000

# (points a, points b, threshold, seed) -> R, t, inliers (N,) bool, as `relative_pose`.
Relative = Callable[[np.ndarray, np.ndarray, float, int], "tuple | None"]
# (points (N, 3), rays (N, 2), threshold, seed) -> R, t, indices of inliers, as `resection`.
Resect = Callable[[np.ndarray, np.ndarray, float, int], "tuple | None"]


class RigCandidate(NamedTuple):
    """A rig with joints, scale free: the median distance of the joints from view 0 is one."""

    R: np.ndarray  # (V, 3, 3), x_cam = R x_ref + t; view 0: identity
    t: np.ndarray  # (V, 3)
    joints: np.ndarray  # (T, J, 3), NaN where fewer than two views see a joint
    inliers: float  # share of the seen points that reproject within the threshold
    error: float  # mean truncated squared reprojection error over the threshold's square, 0 to 1


def five_point_rigs(
    xy: np.ndarray,
    K: np.ndarray,
    confidence: np.ndarray | None = None,
    seed: int = 0,
    threshold: float = 0.01,
    num_pairs: int = 6,
    relative: Relative | None = None,
    resect: Resect | None = None,
) -> list[RigCandidate]:
    """Candidate rigs of V static views, best first.

    Args:
        xy: (T, V, J, 2) px of undistorted images; NaN = not seen.
        K: (V, 3, 3) or (T, V, 3, 3) px, zero skew.
        confidence: (T, V, J); points of zero confidence count as not seen.
        seed: of RANSAC; equal seeds give equal rigs.
        threshold: reprojection error of an inlier over the focal length (0.01: 11 px at 1150 px).
        num_pairs: seed pairs tried, those with most common points first.
        relative, resect: other solvers in place of `relative_pose` and `resection`.

    Returns:
        At most ``num_pairs`` candidates with the smallest error first; none where no seed pair has
        enough common points or a view cannot be attached.
    """
    rays, seen = _normalise(np.asarray(xy, float), np.asarray(K, float), confidence)
    V = rays.shape[0]
    common = {(i, j): int((seen[i] & seen[j]).sum()) for i, j in combinations(range(V), 2)}
    order = sorted(common, key=lambda pair: -common[pair])
    pairs = [pair for pair in order if common[pair] >= MIN_POINTS][: max(num_pairs, 1)]
    T, J = np.asarray(xy).shape[0], np.asarray(xy).shape[2]
    solvers = (relative or relative_pose, resect or resection)
    rigs = [_grow(rays, seen, pair, seed, threshold, *solvers) for pair in pairs]
    found = [_candidate(rays, seen, rig, threshold, T, J) for rig in rigs if rig is not None]
    return sorted((c for c in found if c is not None), key=lambda candidate: candidate.error)


def _normalise(
    xy: np.ndarray, K: np.ndarray, confidence: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised points (V, N, 2), 0 where not seen, and which are seen (V, N); N = T J."""
    T, V, J, _ = xy.shape
    K = np.broadcast_to(K, (T, V, 3, 3))
    focal = K[..., [0, 1], [0, 1]][:, :, None]
    rays = (xy - K[:, :, None, :2, 2]) / focal
    seen = np.isfinite(rays).all(-1)
    if confidence is not None:
        seen &= np.nan_to_num(np.asarray(confidence, float)) > 0
    rays = np.where(seen[..., None], rays, 0.0)
    # (T, V, J, ...) -> (V, T J, ...)
    return rays.swapaxes(0, 1).reshape(V, T * J, 2), seen.swapaxes(0, 1).reshape(V, T * J)


def relative_pose(
    a: np.ndarray, b: np.ndarray, threshold: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Five-point relative pose of two views with RANSAC (Nister, PAMI 2004).

    Args:
        a, b: (N, 2) normalised points of the same joints. threshold: normalised.

    Returns:
        R (3, 3), t (3,) of length one, ``x_b = R x_a + t``, and inliers (N,) bool; None where no
        essential matrix is found.
    """
    params = cv2.UsacParams()
    params.randomGeneratorState = seed
    params.threshold, params.confidence = threshold, _CONFIDENCE
    params.maxIterations = _MAX_TRIALS
    params.score = cv2.SCORE_METHOD_MSAC
    params.loMethod, params.loIterations, params.loSampleSize = cv2.LOCAL_OPTIM_INNER_LO, 10, 14
    eye, none = np.eye(3), np.zeros(0)
    try:
        E, mask = cv2.findEssentialMat(a, b, eye, eye, none, none, params)
        if E is None or E.shape != (3, 3) or mask is None:
            return None
        _, R, t, mask = cv2.recoverPose(E, a, b, eye, mask=mask.copy())
    except cv2.error:  # too few points, or all of them in one place
        return None
    if not (np.isfinite(R).all() and np.isfinite(t).all()):
        return None
    return R, t[:, 0], mask.ravel() > 0


def _grow(
    rays: np.ndarray,
    seen: np.ndarray,
    pair: tuple[int, int],
    seed: int,
    threshold: float,
    relative: Relative,
    resect: Resect,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The rig (V, 3, 3), (V, 3) grown from a seed pair, in the frame of the pair's first view."""
    V = len(rays)
    both = seen[pair[0]] & seen[pair[1]]
    first = relative(rays[pair[0], both], rays[pair[1], both], threshold, seed)
    if first is None:
        return None
    R, t = np.tile(np.eye(3), (V, 1, 1)), np.zeros((V, 3))
    R[pair[1]], t[pair[1]] = first[:2]
    known, usable = list(pair), seen.copy()
    outlier = np.flatnonzero(both)[~first[2]]
    usable[pair[1], outlier] = usable[pair[0], outlier] = False  # for the triangulation only
    while len(known) < V:
        points, fixed = triangulate(rays[known], usable[known], R[known], t[known])
        rest = [v for v in range(V) if v not in known]
        view = max(rest, key=lambda v: int((seen[v] & fixed).sum()))
        chosen = np.flatnonzero(seen[view] & fixed)
        enough = len(chosen) >= MIN_POINTS
        pose = resect(points[chosen], rays[view, chosen], threshold, seed) if enough else None
        if pose is None:
            return None
        R[view], t[view] = pose[:2]
        usable[view] = False
        usable[view, chosen[pose[2]]] = True
        # Points that the view sees and nobody else had: its word counts.
        usable[view, seen[view] & ~fixed] = True
        known.append(view)
    return R, t


def resection(
    points: np.ndarray, rays: np.ndarray, threshold: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Pose of a view from points (N, 3) and their rays (N, 2): RANSAC, then least squares.

    Returns:
        R (3, 3), t (3,) and indices of the inliers; None where none is found.
    """
    cv2.setRNGSeed(seed)
    eye = np.eye(3)
    try:
        ok, w, t, inliers = cv2.solvePnPRansac(
            points, rays, eye, None, reprojectionError=threshold, confidence=_CONFIDENCE,
            iterationsCount=300, flags=cv2.SOLVEPNP_SQPNP,
        )  # fmt: skip
        if not ok or inliers is None or len(inliers) < 4:
            return None
        inliers = inliers.ravel()
        w, t = cv2.solvePnPRefineLM(points[inliers], rays[inliers], eye, None, w, t)
    except cv2.error:
        return None
    if not (np.isfinite(w).all() and np.isfinite(t).all()):
        return None
    return cv2.Rodrigues(w)[0], t.ravel(), inliers


def triangulate(
    rays: np.ndarray, seen: np.ndarray, R: np.ndarray, t: np.ndarray, threshold: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Points nearest to their rays, weighted to the reprojection error, Cauchy-robust if asked.

    Args:
        rays: (V, N, 2) normalised. seen: (V, N) bool. R, t: (V, 3, 3), (V, 3).
        threshold: normalised reprojection error at which a view's weight is halved.

    Returns:
        (N, 3) and (N,) bool: seen by two views, in front of them, rays not parallel.
    """
    # The component of (R X + t) across the ray (x, y, 1), over the depth, is the error.
    u = np.concatenate([rays, np.ones_like(rays[..., :1])], -1)  # (V, N, 3)
    rows = R[:, None, :2] - u[..., :2, None] * R[:, None, 2:3]  # (V, N, 2, 3)
    right = u[..., :2] * t[:, None, 2:3] - t[:, None, :2]  # (V, N, 2)
    weight = seen.astype(float)
    for _ in range(IRLS_ITERATIONS):
        A = np.einsum("vn,vnij,vnik->njk", weight, rows, rows)
        b = np.einsum("vn,vnij,vni->nj", weight, rows, right)
        # 1e-9 of the trace keeps points finite whose rays are parallel.
        ridge = 1e-9 * np.trace(A, axis1=1, axis2=2)[:, None, None] + 1e-12
        X = np.linalg.solve(A + ridge * np.eye(3), b[..., None])[..., 0]
        camera = np.einsum("vij,nj->vni", R, X) + t[:, None]
        depth = camera[..., 2]
        residual = np.linalg.norm(camera[..., :2] - u[..., :2] * depth[..., None], axis=-1)
        # 1e-6 guards points in a camera's plane.
        safe = np.maximum(np.abs(depth), 1e-6)
        weight = seen / safe**2 / (1 + (residual / safe / threshold) ** 2)
    front = ((depth > 0) | ~seen).all(0)
    return X, (seen.sum(0) >= 2) & front & np.isfinite(X).all(-1)


def _candidate(
    rays: np.ndarray,
    seen: np.ndarray,
    rig: tuple[np.ndarray, np.ndarray],
    threshold: float,
    T: int,
    J: int,
) -> RigCandidate | None:
    """A rig in view 0's frame with joints, scale and score."""
    R = rig[0] @ rig[0][0].T
    t = rig[1] - R @ rig[1][0]
    R[0], t[0] = np.eye(3), 0.0  # to the last bit
    points, _ = triangulate(rays, seen, R, t, threshold)
    pairs = seen.sum(0) >= 2
    if not pairs.any():
        return None
    camera = np.einsum("vij,nj->vni", R, points) + t[:, None]
    depth = camera[..., 2]
    front = depth > 1e-9
    error = np.linalg.norm(camera[..., :2] / np.where(front, depth, 1.0)[..., None] - rays, axis=-1)
    square = np.where(front, np.minimum((error / threshold) ** 2, 1.0), 1.0)
    counted = seen & pairs
    scale = np.median(np.linalg.norm(points[pairs], axis=-1))
    if not np.isfinite(scale) or scale < 1e-12:
        return None
    joints = np.where(pairs[:, None], points / scale, np.nan).reshape(T, J, 3)
    mean = float(square[counted].mean())
    return RigCandidate(R, t / scale, joints, float((square < 1)[counted].mean()), mean)
