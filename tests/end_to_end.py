"""What end-to-end training buys: stage 3 in variants, from the same weights of stages 1 and 2.

python tests/end_to_end.py     # the table of docs/results.md; half an hour of a core

Every seed has people, rigs, images and weights of its own (`test_stages.py`); the variants of a
seed share all of that, and the order of the images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from test_stages import end_to_end, evaluate, parts

from ptri.evaluation.table import grid

VARIANTS = {
    "2D frozen": ["train.freeze_2d=true"],
    "2D trained by heatmaps alone": ["train.gradient_2d=0"],
    "end to end, gradient_2d 0.01": ["train.gradient_2d=0.01"],
    "end to end": ["train.gradient_2d=1"],
}
NAMES = ("not trained together", *VARIANTS)
POOLED = "evaluate.pool_frames=50"
FIGURES = {
    "mpjpe": "MPJPE, mm, each frame alone",
    "pooled/mpjpe": "10 frames pooled",
    "mpjpe_calibrated": "true cameras",
    "x2d/l2": "2D, px",
}


def run_seed(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Figures of each variant on the test subjects."""
    given = parts(folder, seed)
    figures = {
        "not trained together": evaluate(given.data, folder, "together", *given.init, POOLED)
    }
    for number, (name, arguments) in enumerate(VARIANTS.items()):
        place = f"variant_{number}"
        figures[name] = end_to_end(given, folder, seed, place, POOLED, *arguments)
    return figures


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Figures by variant and seed; then differences from the frozen network, paired by seed."""
    heads, tables = [*(f"seed {seed}" for seed in results), "mean", "over frozen"], []
    for figure, title in FIGURES.items():
        seeds = results.values()
        values = {name: torch.tensor([seed[name][figure] for seed in seeds]) for name in NAMES}
        rows = []
        for name, value in values.items():
            gain = value - values["2D frozen"]
            error = gain.std() / len(gain) ** 0.5  # NaN of one seed
            cells = [f"{number:.2f}" for number in (*value, value.mean())]
            rows.append([name, *cells, f"{gain.mean():+.2f} +- {error:.2f}"])
        tables.append(grid([title, *heads], rows))
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/end_to_end"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for seed in args.seeds:
        folder = args.out / f"seed_{seed}"
        place = folder / "figures.json"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(run_seed(folder, seed)))
        results[str(seed)] = json.loads(place.read_text())
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
