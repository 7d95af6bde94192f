"""Trains the 3D network: lifter, rig posterior and fusion.

python train3d.py configs/demo_3d.yaml train.epochs=3
torchrun --nproc-per-node 2 train3d.py configs/demo_3d.yaml
"""

import sys

from ptri.training.run import main
from ptri.training.task3d import RigTask

if __name__ == "__main__":
    sys.exit(main(RigTask, __doc__))
