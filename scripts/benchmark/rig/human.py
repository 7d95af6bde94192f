"""HumanCalib (PyPI ``humancalib``) as a peer: its calibration stages, fed with generated keypoints.

Its command takes videos and makes its own keypoints and monocular 3D poses (MeTRAbs or VideoPose3D,
both downloads). Generated cases have no images, so the 3D poses are those of our lifter; what
follows is HumanCalib's: Procrustes between the cameras, triangulation, and its bundle adjustment
with bone lengths and analytic Jacobian, with the default settings of ``humancalib run`` but for the
number of evaluations: it allows 60,000, which gross outliers can make minutes of.
"""

from __future__ import annotations

import logging
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
import torch
from scipy.optimize import least_squares

from benchmark.rig.cases import Cases
from benchmark.rig.ours import make_model
from benchmark.rig.peers import Peer, PeerRig, library, relative_rig
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

_THRESHOLD = 0.5  # of confidences, its default
_EVALUATIONS = 200  # of its least squares; what converges does so in fewer


def human_calib() -> Peer:
    """HumanCalib's Procrustes and bundle adjustment from our lifter's skeletons.

    Raises:
        NotInstalledError: no humancalib, or one of its own needs.
    """
    linear, adjust = (library(f"humancalib.calibration.{name}") for name in ("calib_linear", "ba"))
    adjust.least_squares = lambda *args, **options: least_squares(
        *args, **{**options, "max_nfev": _EVALUATIONS}
    )
    logging.getLogger("humancalib").setLevel(logging.CRITICAL)
    lifter = make_model()[0].lifter
    bones = np.array(H36M17.bones)

    @torch.no_grad()
    def solve(case: Cases, seed: int) -> PeerRig | None:
        keypoints = Keypoints(*(value.float() for value in case.keypoints))
        lifted = lifter(keypoints, case.K.float()).joints3d[0].double()
        xy = case.keypoints.xy[0].transpose(0, 1)  # (V, T, J, 2)
        seen = xy.isfinite().all(-1)
        poses = lifted.transpose(0, 1).numpy()  # (V, T, J, 3), in each camera's space
        valid, K = seen.double().numpy(), case.K[0, 0].numpy()
        points = torch.where(seen[..., None], xy, torch.nan).numpy()
        try:
            with redirect_stderr(StringIO()), np.errstate(all="ignore"):  # its progress bars
                R, t, _ = linear.calib_procrustes(poses, valid, K, points, valid, _THRESHOLD)
                views = (np.nan_to_num(points), valid, poses, valid)
                weights = (1.0, 1.0, _THRESHOLD, bones)
                R, t, _, _ = adjust.ba_main(
                    np.arange(len(K)), K, R, t, *views, *weights, jac_mode="analytic"
                )
        except (ValueError, AssertionError, np.linalg.LinAlgError):
            return None
        return relative_rig(np.asarray(R, float), np.asarray(t, float).reshape(-1, 3))

    return solve
