"""Time of rendering single images, in seconds of processor time: images per second and core."""

from __future__ import annotations

import argparse
import os
import time

from benchmark.figures import Figure, Judged
from ptri.errors import UserError
from ptri.fields import read_yaml
from ptri.render.settings import RenderSettings, settings_from

TARGET = 60.0  # images per second of processor time, 256 px, software OpenGL
_CHUNK = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", type=int, default=256, help="timed, after as many that build the people")
    add("--config", metavar="YAML", help="settings of the renderer")
    add("--set", nargs="*", default=[], metavar="key=value", help="change them")


def run(args: argparse.Namespace) -> str:
    os.environ["LP_NUM_THREADS"] = "1"
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings = RenderSettings(size=256, people=32)
    if args.config:
        settings = settings_from(read_yaml(args.config), settings)
    wrong = [text for text in args.set if "=" not in text]
    if wrong or args.images < 1:
        raise UserError(f"--set {' '.join(wrong)}: expected key=value; --images: at least 1")
    settings = settings_from(dict(text.split("=", 1) for text in args.set), settings)
    try:
        from ptri.render.single import Studio

        studio = Studio(settings)
    except ImportError as error:
        raise UserError(f"{error}; make render installs the render extra") from None
    except RuntimeError as error:
        raise UserError(str(error)) from None
    keys = [(settings.seed, 0, i) for i in range(2 * args.images)]
    _shoot(studio, keys[: args.images])
    start, clock = time.process_time(), time.perf_counter()
    _shoot(studio, keys[args.images :])
    used, wall = time.process_time() - start, time.perf_counter() - clock
    driver = studio.driver
    studio.close()
    rate = args.images / used
    unit = " images per second of processor time"
    judged = Judged("", Figure(rate), least=TARGET, form=".1f", unit=unit)
    return (
        f"{args.images} single images of {settings.size} px, one process, {driver}; * = not met:\n"
        f"{judged.text()}, {1000 * used / args.images:.1f} ms each; {args.images / wall:.1f} per "
        "second of the clock"
    )


def _shoot(studio, keys: list[tuple[int, int, int]]) -> None:
    for first in range(0, len(keys), _CHUNK):
        studio.shoot(keys[first : first + _CHUNK])
