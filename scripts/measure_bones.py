"""How long a 2D network draws each bone, over its true length: for `posterior.bone_ratio`.

python infer3d.py configs/demo.yaml data.root=FOLDER data.test_subjects=[8]
python scripts/measure_bones.py outputs/demo/predictions.h5

Joints are triangulated robustly from the network's keypoints with the true cameras; of a bone's
ratios over all frames the median counts, and left and right share it. Measure on people that were
not trained on, and not on those that results are reported for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from detector_errors.bones import bone_ratio
from torch import Tensor

from ptri.errors import UserError, exit_status
from ptri.geometry.cameras import to_reference
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", help="predictions.h5 of an infer3d.py run")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(report(measure(Path(args.predictions)))))


def measure(path: Path) -> Tensor:
    """Drawn over true lengths (16,), in the order of `H36M17.bones`.

    Raises:
        UserError: no such file, or not a file that infer3d.py wrote.
    """
    names = ("keypoints/xy", "keypoints/covariance", "keypoints/confidence")
    names += ("cameras/K", "cameras/R", "cameras/t", "joints3d_true")
    try:
        with h5py.File(path) as file:
            values = [torch.from_numpy(np.asarray(file[name])).double() for name in names]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: {error}; give the predictions.h5 of an infer3d.py run") from None
    *keypoints, K, R, t, truth = values
    cameras = to_reference(Cameras(K, R, t))._replace(K=K.unsqueeze(1))
    keypoints = Keypoints(*(value.unsqueeze(1) for value in keypoints))
    return bone_ratio(keypoints, cameras, truth.unsqueeze(1))


def report(ratio: Tensor) -> str:
    """A line a bone, and the setting."""
    lines = [
        f"{H36M17.joints[parent]} to {H36M17.joints[child]}: {float(value):.3f}"
        for (child, parent), value in zip(H36M17.bones, ratio)
    ]
    values = ", ".join(f"{float(value):.3f}" for value in ratio)
    return "\n".join([*lines, "", f"posterior.bone_ratio: [{values}]"])


if __name__ == "__main__":
    sys.exit(main())
