"""Makes weights to ship from a run's checkpoint: the averaged weights alone, matrices in fp16.

python scripts/export_weights.py runs/rendered_2d_s0/best.pt checkpoints/mobileone_s0_256.pt
python scripts/export_weights.py checkpoints/mobileone_s0_256.pt --evaluate configs/demo_2d.yaml

The second form prints a 2D network's metrics on the test subjects of a configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ptri import checkpoint, config
from ptri.errors import UserError, exit_status
from ptri.training.task2d import HeatmapTask


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="best.pt or last.pt of a run, or shipped weights")
    parser.add_argument("target", nargs="?", help="file to write")
    parser.add_argument("--evaluate", metavar="YAML", help="2D metrics on its test subjects")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="section.key=value", help="change its settings"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    args = parser.parse_args(arguments)

    def work() -> None:
        if args.target is None and args.evaluate is None:
            raise UserError("nothing to do; give a file to write, or --evaluate")
        if args.target is not None:
            export(Path(args.source), Path(args.target), args.overwrite)
        if args.evaluate is not None:
            metrics = evaluate(args.target or args.source, args.evaluate, args.set)
            print(json.dumps({name: round(value, 4) for name, value in metrics.items()}, indent=1))

    return exit_status(work)


def export(source: Path, target: Path, overwrite: bool = False, prefix: str = "") -> None:
    """Writes the evaluated weights of a checkpoint and how they were made, without any path.

    Args:
        prefix: of the weights that are kept.

    Raises:
        UserError: no checkpoint, the target exists, or a weight does not fit fp16.
    """
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; choose another name or give --overwrite")
    weights, meta = checkpoint.load_weights(source)
    weights = {name: value for name, value in weights.items() if name.startswith(prefix)}
    made = meta.get("config") or {}
    kept = {name: made[name] for name in ("model", "augment", "posterior", "train") if name in made}
    kept["image_size"] = made.get("data", {}).get("image_size")
    kept["seed"] = made.get("run", {}).get("seed")
    notes = {name: meta.get(name) for name in ("epoch", "step", "best", "commit", "detector")}
    checkpoint.save_weights(target, weights, {**notes, **kept})


def evaluate(weights: str | Path, path: str | Path, overrides: list[str]) -> dict[str, float]:
    """Metrics of a 2D network on the test subjects of a configuration."""
    task = HeatmapTask(config.load(path, [*overrides, f"init.checkpoint_2d={weights}"]))
    return task.validate(task.build_model().eval())


if __name__ == "__main__":
    sys.exit(main())
