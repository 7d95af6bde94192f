"""Trains the 2D heatmap network on images.

python train2d.py configs/demo_2d.yaml train.epochs=3
torchrun --nproc-per-node 2 train2d.py configs/demo_2d.yaml
"""

import argparse
import sys

from ptri import config
from ptri.errors import exit_status
from ptri.training import engine
from ptri.training.task2d import HeatmapTask


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a setting; or more YAML"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run folder's last.pt")
    parser.add_argument("--overwrite", action="store_true", help="replace the run folder")
    args = parser.parse_intermixed_args()

    def train() -> None:
        settings = config.load(args.config, args.overrides)
        engine.fit(HeatmapTask(), settings, resume=args.resume, overwrite=args.overwrite)

    return exit_status(train)


if __name__ == "__main__":
    sys.exit(main())
