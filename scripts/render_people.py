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

from ptri.errors import UserError
from ptri.fields import read_yaml


def main() -> int:
    """Command line; returns the exit status."""
    try:
        from ptri.render.settings import RenderSettings, settings_from
    except ImportError as error:
        return _fail(f"{error}; install the render extra: pip install -e .[render]")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file with any of the settings below")
    parser.add_argument(
        "--body-statistics",
        action="store_true",
        help="only write ptri/posterior/body_statistics.json (bone lengths of Anny's adults)",
    )
    parser.add_argument("--bodies", type=int, default=2000, help="people drawn for it")
    for field in dataclasses.fields(RenderSettings):
        default = [] if field.default is dataclasses.MISSING else field.default
        shown = ",".join(default) if isinstance(default, (tuple, list)) else default
        parser.add_argument("--" + field.name.replace("_", "-"), help=f"default {shown}")
    arguments = vars(parser.parse_args())
    try:
        if arguments.pop("body_statistics"):
            return _write_statistics(arguments["bodies"])
        arguments.pop("bodies")
        path = arguments.pop("config")
        settings = settings_from({} if path is None else read_yaml(path), where=f"{path}: ")
        given = {key: value for key, value in arguments.items() if value is not None}
        settings = settings_from(given, settings, "command line: ")
        from ptri.render.layout import render_dataset

        labels = render_dataset(settings)
    except UserError as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(f"{error}; install the render extra: pip install -e .[render]")
    except KeyboardInterrupt:
        return _fail("interrupted; start again with the same settings to go on")
    if labels is None:
        print(f"{settings.out}: shards of {settings.images * len(settings.subjects)} images")
        return 0
    num_images = int((labels.boxes != 0).any(-1).sum())
    print(f"{settings.out}: {num_images} images of {len(labels.frame)} frames")
    return 0


def _write_statistics(num_bodies: int) -> int:
    from ptri.render.body import body_statistics

    path = Path(__file__).resolve().parents[1] / "ptri" / "posterior" / "body_statistics.json"
    path.write_text(json.dumps(body_statistics(num_bodies), indent=1))
    print(f"{path}: {num_bodies} bodies")
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
