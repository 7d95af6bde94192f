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

VARIANTS = {
    "2D frozen": ["train.freeze_2d=true"],
    "2D trained by heatmaps alone": ["train.gradient_2d=0"],
    "end to end, gradient_2d 0.01": ["train.gradient_2d=0.01"],
    "end to end": ["train.gradient_2d=1"],
}
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
    found = {"not trained together": evaluate(given.data, folder, "together", *given.init, POOLED)}
    for number, (name, arguments) in enumerate(VARIANTS.items()):
        own = [POOLED, *arguments]
        found[name] = end_to_end(given, folder, seed, f"variant_{number}", *own)
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Figures by variant and seed; then differences from the frozen network, paired by seed."""
    lines = []
    for figure, title in FIGURES.items():
        seeds = "".join(f"{'seed ' + seed:>9}" for seed in results)
        lines += ["", f"{title:<32}{seeds}     mean   over frozen"]
        for name in next(iter(results.values())):
            own = torch.tensor([found[name][figure] for found in results.values()])
            frozen = torch.tensor([found["2D frozen"][figure] for found in results.values()])
            gain = own - frozen
            error = gain.std() / len(gain) ** 0.5 if len(gain) > 1 else torch.tensor(torch.nan)
            row = "".join(f"{value:9.2f}" for value in own.tolist())
            lines.append(f"{name:<32}{row}{own.mean():9.2f}{gain.mean():+9.2f} +- {error:.2f}")
    return "\n".join(lines)


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
