"""What train2d.py and train3d.py do: read the command line, load the settings, train."""

from __future__ import annotations

import argparse

from ptri import config
from ptri.errors import exit_status
from ptri.training import engine
from ptri.training.state import Task


def main(task: type[Task], description: str) -> int:
    """Trains a task as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
        engine.fit(task(settings), resume=args.resume, overwrite=args.overwrite)

    return exit_status(train)
