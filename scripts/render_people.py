"""Renders people in the Human3.6M layout (extra `render`: Anny bodies, moderngl over EGL).

    python scripts/render_people.py --out data/rendered --frames 20 --workers 2
    python scripts/render_people.py --config my_people.yaml
    python scripts/render_people.py --body-statistics

An interrupted run goes on where it was when started again with the same settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ptri.errors import UserError, exit_status
from ptri.fields import read_yaml

STATISTICS = Path(__file__).resolve().parents[1] / "ptri/posterior/body_statistics.json"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""

    def work() -> None:
        try:
            run(arguments)
        except ImportError as error:
            message = f"{error}; make render installs the render extra"
            raise UserError(message) from None
        except KeyboardInterrupt:
            message = "interrupted; start again with the same settings to go on"
            raise UserError(message) from None

    return exit_status(work)


def run(arguments: list[str] | None) -> None:
    """Renders, or measures bodies.

    Raises:
        UserError: bad settings, or a folder made with others.
    """
    from ptri.render.settings import RenderSettings, settings_from

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file with any of the settings below")
    text = "only write ptri/posterior/body_statistics.json (bone lengths of Anny's adults)"
    parser.add_argument("--body-statistics", action="store_true", help=text)
    parser.add_argument("--bodies", type=int, default=2000, help="people drawn for it")
    for field in dataclasses.fields(RenderSettings):
        default = [] if field.default is dataclasses.MISSING else field.default
        shown = ",".join(default) if isinstance(default, (tuple, list)) else default
        parser.add_argument("--" + field.name.replace("_", "-"), help=f"default {shown}")
    given = vars(parser.parse_args(arguments))
    measure, bodies, path = (given.pop(name) for name in ("body_statistics", "bodies", "config"))
    if measure:
        from ptri.render.people.body import body_statistics

        STATISTICS.write_text(json.dumps(body_statistics(bodies), indent=1))
        print(f"{STATISTICS}: {bodies} bodies")
        return
    settings = settings_from({} if path is None else read_yaml(path), where=f"{path}: ")
    given = {key: value for key, value in given.items() if value is not None}
    settings = settings_from(given, settings, "command line: ")
    from ptri.render.write.layout import render_dataset

    labels = render_dataset(settings)
    if labels is None:
        print(f"{settings.out}: shards of {settings.images * len(settings.subjects)} images")
    else:
        num_images = int((labels.boxes != 0).any(-1).sum())
        print(f"{settings.out}: {num_images} images of {len(labels.frame)} frames")


if __name__ == "__main__":
    sys.exit(main())
