"""Trains the 2D heatmap network on images.

python train2d.py configs/demo_2d.yaml train.epochs=3
torchrun --nproc-per-node 2 train2d.py configs/demo_2d.yaml
"""

import os

# Before torch is loaded: threads that wait without spinning. A second busy process otherwise makes
# both many times slower (a minute of video: 519 for 105 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sys

from ptri.training.run import main
from ptri.training.task2d import HeatmapTask

if __name__ == "__main__":
    sys.exit(main(HeatmapTask, __doc__))
