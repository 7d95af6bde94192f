"""Time of rendering single images, in seconds of processor time: images per second and core."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import yaml

from ptri.errors import UserError

TARGET = 60.0  # images per second of processor time, 256 px, software OpenGL
_CHUNK = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add("--images", type=int, default=256, help="timed, after as many that build the people")
    add("--config", metavar="YAML", help="factors, flat or in a section render")
    add("--set", nargs="*", default=[], metavar="key=value", help="change them")


def run(args: argparse.Namespace) -> str:
    """Renders in this process alone and times it.

    Returns:
        The text to print.
    """
    os.environ["LP_NUM_THREADS"] = "1"
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        from ptri.render.settings import RenderSettings, settings_from
        from ptri.render.single import Studio
    except ImportError as error:
        raise UserError(f"{error}; install the render extra: pip install -e .[render]") from None
    settings = RenderSettings(size=256, people=32)
    if args.config:
        settings = settings_from(yaml.safe_load(Path(args.config).read_text()), settings)
    settings = settings_from(dict(text.split("=", 1) for text in args.set), settings)
    studio = Studio(settings)
    keys = [(settings.seed, 0, i) for i in range(2 * args.images)]
    start = (0.0, 0.0)
    for first in range(0, len(keys), _CHUNK):
        if first >= args.images and start == (0.0, 0.0):
            start, timed = (time.process_time(), time.perf_counter()), len(keys) - first
        studio.shoot(keys[first : first + _CHUNK])
    used, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    driver = studio.driver
    studio.close()
    rate = timed / used
    mark = "" if rate >= TARGET else "*"
    return (
        f"{timed} single images of {settings.size} px, one process, {driver}:\n"
        f"{rate:.1f} images per second of processor time{mark} (>= {TARGET:g}; * = not met), "
        f"{1000 * used / timed:.1f} ms each; {timed / wall:.1f} per second of the clock"
    )
