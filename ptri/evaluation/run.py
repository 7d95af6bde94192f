"""What infer3d.py does for a data set: one set of cameras, or several, one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ptri import config as configuration
from ptri.config import Config
from ptri.data.multiview import MultiView, open_split
from ptri.errors import UserError
from ptri.evaluation import outputs, table
from ptri.evaluation.evaluate import evaluate, load_model
from ptri.system import ALONE, World, on_first, together


def run(config: Config, folder: Path, world: World = ALONE) -> str:
    """Evaluates the weights on the test split; returns the printed text.

    Each of ``evaluate.camera_sets`` has its own folder and tables; a table of all follows.

    Raises:
        UserError: bad settings, data or weights.
    """
    sets = config.evaluate.camera_sets
    parts = [configuration.replace(config, data__views=views) for views in sets] or [config]

    def prepare() -> tuple[list[MultiView], nn.Module]:
        names = [set_name(views) for views in sets]
        if len(set(names)) < len(names):
            raise UserError(f"evaluate.camera_sets: {', '.join(names)}; name each set once")
        return [open_split(part, "test") for part in parts], load_model(config, True, world)

    # All are opened before the first is evaluated: what is wrong with one is said at once.
    datasets, model = together(world, prepare)
    if not sets:
        return evaluate(model, datasets[0], config, folder, world)[1]
    on_first(world, lambda: outputs.clear(folder))
    texts, figures, details = [], {}, {}
    for views, part, dataset in zip(sets, parts, datasets):
        name = set_name(views)
        figures[name], text = evaluate(model, dataset, part, folder / name, world)
        if world.first:
            texts.append(f"--- cameras {name} ---\n\n{text}")
            details[name] = json.loads((folder / name / "details.json").read_text())
    if not world.first:
        return ""
    text = "\n\n".join([*texts, table.set_table(details)])
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    (folder / "table.txt").write_text(text + "\n")
    outputs.write_json(folder / "metrics.json", figures)
    return text


def set_name(views: Any) -> str:
    """What a set of cameras is called: its own name, or those of its cameras."""
    return "-".join(map(str, views)) if isinstance(views, (list, tuple)) else str(views)
