"""Trains the 3D network: lifter, rig posterior and fusion.

python train3d.py configs/demo_3d.yaml train.epochs=3
torchrun --nproc-per-node 2 train3d.py configs/demo_3d.yaml
"""

import os

# Before torch is loaded: threads that wait without spinning. A second busy process otherwise makes
# both many times slower (a minute of video: 519 for 105 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sys

from ptri.training.run import main
from ptri.training.task3d import RigTask

if __name__ == "__main__":
    sys.exit(main(RigTask, __doc__))
