"""Sparse bundle adjustment by pycolmap (Ceres), started from the truth or after other peers.

A rig of V static cameras over T frames is V images of T J points: COLMAP's own model, with fixed
intrinsics. Reprojection errors in px of a 1000 px focal length. The losses know the true noise;
their scales in units of it are those that served these adjustments best of 1, 1.35 and 2.4.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmark.rig.cases import Cases
from benchmark.rig.peers import (
    Peer,
    PeerRig,
    calibrated,
    five_point,
    library,
    noise,
    relative_rig,
    triangulated,
)
from ptri.structures import Cameras

_UNIT = 1000.0  # px, focal length of the adjusted problem
LOSSES = {"soft_l1": 1.0, "cauchy": 2.4}  # scale over the noise


def bundle_adjustment(loss: str, start: str = "fivepoint") -> Peer:
    """Robust bundle adjustment.

    Args:
        loss: "soft_l1" or "cauchy". start: "truth" (true cameras) or "fivepoint" (OpenCV's).

    Raises:
        NotInstalledError: no pycolmap.
    """
    lib = library("pycolmap")
    lib.logging.minloglevel = 2  # errors only

    def solve(case: Cases, seed: int) -> PeerRig | None:
        begin = calibrated(case, seed) if start == "truth" else five_point(case, seed)
        if begin is None:
            return None
        cameras = Cameras(case.K, *(torch.from_numpy(x)[None] for x in (begin.R, begin.t)))
        joints = triangulated(case.keypoints, cameras)[0].numpy()
        return adjust(lib, case, begin.R, begin.t, joints, loss)

    return solve


def adjust_lenses(case: Cases, common: bool, seed: int) -> tuple[PeerRig | None, np.ndarray]:
    """Adjusts one case with focal lengths free, from OpenCV's rig by the case's K.

    Args:
        common: views have one focal length, in the ratios of K.

    Returns:
        The rig, and log focal lengths (V,) over those of K.

    Raises:
        NotInstalledError: no pycolmap.
    """
    lib = library("pycolmap")
    lib.logging.minloglevel = 2  # errors only
    begin = five_point(case, seed)
    if begin is None:
        return None, np.full(case.K.shape[2], np.nan)
    cameras = Cameras(case.K, *(torch.from_numpy(x)[None] for x in (begin.R, begin.t)))
    joints = triangulated(case.keypoints, cameras)[0].numpy()
    free = "common" if common else "own"
    problem = _adjusted(lib, case, begin.R, begin.t, joints, "cauchy", free)
    numbers = [1 if common else view + 1 for view in range(len(begin.R))]
    focal = [problem.cameras[number].params[0] / _UNIT for number in numbers]
    return _rig_of(problem, len(begin.R)), np.log(np.maximum(focal, 1e-3))


def adjust(
    lib, case: Cases, R: np.ndarray, t: np.ndarray, joints: np.ndarray, loss: str
) -> PeerRig | None:
    """Adjusts one case from cameras (V, 3, 3), (V, 3) and joints (T, J, 3), NaN = left out."""
    return _rig_of(_adjusted(lib, case, R, t, joints, loss), len(R))


def _rig_of(problem, num_views: int) -> PeerRig | None:
    poses = [problem.images[view + 1].cam_from_world() for view in range(num_views)]
    rotations = np.stack([pose.rotation.matrix() for pose in poses])
    return relative_rig(rotations, np.stack([pose.translation for pose in poses]))


def _adjusted(
    lib,
    case: Cases,
    R: np.ndarray,
    t: np.ndarray,
    joints: np.ndarray,
    loss: str,
    free: str | None = None,
):
    """The adjusted reconstruction; ``free`` focal lengths: "own", "common" or None."""
    K = case.K[0].numpy()  # (T, V, 3, 3)
    focal = K[..., [0, 1], [0, 1]][:, :, None]
    xy = (case.keypoints.xy[0].numpy() - K[:, :, None, :2, 2]) / focal * _UNIT  # (T, V, J, 2)
    usable = np.isfinite(joints).all(-1)
    seen = np.isfinite(xy).all(-1) & usable[:, None]
    scale = 1000.0 / np.median(np.linalg.norm(joints[usable], axis=-1))  # metres, or so
    problem = lib.Reconstruction()
    point = {}
    for frame, joint in zip(*np.nonzero(usable & (seen.sum(1) >= 2))):
        point[frame, joint] = problem.add_point3D(scale * joints[frame, joint], lib.Track())
    for view in range(len(R)):
        number = view + 1
        lens = 1 if free == "common" else number
        if lens == number:
            model = {"model": "SIMPLE_PINHOLE", "params": [_UNIT, 0, 0]}
            camera = lib.Camera(camera_id=lens, width=1, height=1, **model)
            problem.add_camera_with_trivial_rig(camera)
        keys = [key for key in point if seen[key[0], view, key[1]]]
        points = np.array([xy[frame, view, joint] for frame, joint in keys]).reshape(-1, 2)
        image = lib.Image(name=str(view), camera_id=lens, image_id=number, keypoints=points)
        pose = lib.Rigid3d(lib.Rotation3d(R[view]), scale * t[view])
        problem.add_image_with_trivial_frame(image, pose)
        for index, key in enumerate(keys):
            problem.add_observation(point[key], lib.TrackElement(number, index))
    _solve(lib, problem, loss, noise(case) * _UNIT, free is not None)
    return problem


def _solve(lib, problem, loss: str, noise_px: float, free: bool) -> None:
    """Runs Ceres on one thread, with intrinsics fixed but for ``free`` focal lengths."""
    options = lib.BundleAdjustmentOptions()
    options.refine_focal_length = free
    options.refine_principal_point = options.refine_extra_params = False
    options.print_summary = False
    ceres = options.ceres
    ceres.loss_function_type = getattr(lib.LossFunctionType, loss.upper())
    ceres.loss_function_scale = LOSSES[loss] * noise_px
    ceres.solver_options.num_threads = 1
    ceres.solver_options.max_num_iterations = 100
    config = lib.BundleAdjustmentConfig()
    for image in problem.images:
        config.add_image(image)
    for camera in () if free else problem.cameras:
        config.set_constant_cam_intrinsics(camera)
    config.fix_gauge(lib.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    lib.create_default_bundle_adjuster(options, config, problem).solve()
