"""Trains the 3D network: lifter, rig posterior and fusion.

python train3d.py configs/demo_3d.yaml train.epochs=3
torchrun --nproc-per-node 2 train3d.py configs/demo_3d.yaml
"""

import argparse
import sys

from ptri import config
from ptri.errors import exit_status
from ptri.training import engine
from ptri.training.task3d import RigTask


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
        engine.fit(RigTask(), settings, resume=args.resume, overwrite=args.overwrite)

    return exit_status(train)


if __name__ == "__main__":
    sys.exit(main())
