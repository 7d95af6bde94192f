"""Trains the 2D heatmap network on images.

python train2d.py configs/demo_2d.yaml train.epochs=3
torchrun --nproc-per-node 2 train2d.py configs/demo_2d.yaml
"""

import sys

from ptri.training.run import main
from ptri.training.task2d import HeatmapTask

if __name__ == "__main__":
    sys.exit(main(HeatmapTask, __doc__))
