"""Measures the rig posterior and the 2D network against other methods, bounds and targets.

python scripts/benchmark.py rig --families held-out       # the tables of docs/rig_posterior.md
python scripts/benchmark.py rig --quick                   # a minute or two
python scripts/benchmark.py speed
python scripts/benchmark.py photos PATH/persons.json      # the 2D network on photographs
python scripts/benchmark.py videos FOLDER ...             # recordings, by each 2D detector
python scripts/benchmark.py speed2d                       # its time and multiply-adds
python scripts/benchmark.py phones                        # its packages for phones, make phones
python scripts/benchmark.py render                        # images per second and core
python scripts/benchmark.py train                         # training on a GPU (or --device cpu)
python scripts/benchmark.py unseen-rigs                   # all heads on unseen rigs, with targets
python scripts/benchmark.py detectors ROOT                # on rendered rigs: cameras, joints
python scripts/benchmark.py truth                         # do stated regions hold? targets
python scripts/benchmark.py mistakes                      # what is said of a user's mistakes
python scripts/benchmark.py unknowns                      # clocks that nobody set: are they found?
python scripts/benchmark.py ablations                     # trains all heads before that
"""

from __future__ import annotations

import argparse
import time

from benchmark.detectors import command as command_detectors
from benchmark.heads import command_ablations, command_unseen
from benchmark.mistakes import command as command_mistakes
from benchmark.photos import command as command_photos
from benchmark.rig import command as command_rig
from benchmark.speed import command_network, command_phones, command_render, command_train
from benchmark.speed import command_rig as command_speed
from benchmark.truth import command as command_truth
from benchmark.unknowns import command as command_unknowns
from benchmark.videos import command as command_videos
from ptri.errors import exit_status

COMMANDS = {
    "rig": command_rig,
    "speed": command_speed,
    "photos": command_photos,
    "videos": command_videos,
    "speed2d": command_network,
    "phones": command_phones,
    "render": command_render,
    "train": command_train,
    "unseen-rigs": command_unseen,
    "ablations": command_ablations,
    "detectors": command_detectors,
    "truth": command_truth,
    "mistakes": command_mistakes,
    "unknowns": command_unknowns,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__.splitlines()[0]))
    parser.set_defaults(start=time.perf_counter())
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(COMMANDS[args.command].run(args)))
