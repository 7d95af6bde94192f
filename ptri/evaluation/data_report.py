"""What the files of a data set hold, what is missing, and pictures of a few frames."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ptri.config import DataConfig
from ptri.data.index import (
    Index,
    check_labels,
    damaged_images,
    frame_name,
    image_folders,
    joints_in_boxes,
    missing_images,
)
from ptri.data.multiview import MultiView
from ptri.data.transforms import denormalise
from ptri.errors import UserError
from ptri.evaluation import draw
from ptri.evaluation.table import grid
from ptri.skeleton import H36M17

OVERLAYS = DataConfig(image_size=384, crop_scale=1.2)
COLUMNS = 8  # views beside each other


def check(index: Index, read: bool, out: Path) -> int:
    """Prints what an index holds and what is wrong with it; 0 if it is complete, 1 if not.

    Args:
        read: look for truncated images too.
        out: folder of the overlays.

    Raises:
        UserError: as `check_labels`.
    """
    labels = index.labels
    print(f"labels    {index.source}: {len(index.rows)} frames, {index.seen.sum()} images")
    print(f"subjects  {', '.join(labels.subject_names)}")
    print(f"cameras   {', '.join(labels.camera_names[camera] for camera in index.cameras)}")
    check_labels(index)
    print(f"joints    {100 * joints_in_boxes(index):.1f} % project into 1.5 x their box\n")
    missing = set(missing_images(index))
    print(count_table(index, missing))
    problems = [f"missing: {path}" for path in sorted(missing)]
    if read:
        told = missing | {path.parent for path in missing}  # also videos that are too short
        reports = damaged_images(index)
        problems += [text for text in reports if Path(text.partition(":")[0]) not in told]
    print()
    for path in write_overlays(index, missing, out):
        print(f"overlay   {path}")
    for problem in problems[:20]:
        print(problem)
    if len(problems) > 20:
        print(f"... and {len(problems) - 20} more")
    print(f"{len(problems)} problems" if problems else "complete")
    return 1 if problems else 0


def count_table(index: Index, missing: set[Path]) -> str:
    """Labelled frames per action and subject; in brackets the missing images."""
    labels = index.labels
    counts = Counter(zip(labels.subject[index.rows], labels.action[index.rows]))
    gone: Counter = Counter()
    for scene, folder, names in image_folders(index):
        gone[scene] += sum(folder / name in missing for name in names) if missing else 0
    present = [s for s in range(len(labels.subject_names)) if any(k[0] == s for k in counts)]
    rows = []
    for a, action in enumerate(labels.action_names):
        cells = []
        for s in present:
            number = gone[(s, a)]
            cells.append(f"{counts[(s, a)] or '-'}" + (f" ({number} missing)" if number else ""))
        rows.append([action, *cells, str(sum(counts[(s, a)] for s in present))])
    totals = [sum(n for key, n in counts.items() if key[0] == s) for s in present]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    return grid(["", *(labels.subject_names[s] for s in present), "all"], rows)


def write_overlays(index: Index, missing: set[Path], out: Path, number: int = 3) -> list[Path]:
    """Writes pictures of frames spread over the index, all views with the projected skeleton."""
    dataset = MultiView(index, OVERLAYS)
    complete = [
        item
        for item in np.linspace(0, len(dataset) - 1, min(len(dataset), 30)).astype(int)
        if missing.isdisjoint(
            index.image_path(index.rows[item], index.cameras[view])
            for view in np.flatnonzero(index.seen[item])
        )
    ]
    places = np.linspace(0, len(complete) - 1, min(number, len(complete))).astype(int)
    paths = []
    for item in (complete[place] for place in places):
        try:
            sample = dataset[int(item)]
        except UserError as error:  # a damaged image: told, and the others still shown
            print(f"overlay   none of {error}")
            continue
        name = frame_name(index.labels, dataset.row(item))
        views = np.flatnonzero(index.seen[item])
        pictures = [
            draw.overlay(
                denormalise(image.numpy()),
                H36M17,
                xy.numpy(),
                title=f"{name}, {index.labels.camera_names[index.cameras[view]]}",
            )
            for image, xy, view in zip(sample.images, sample.joints2d, views)
        ]
        path = out / (name.replace("/", "_").replace(" ", "_") + ".jpg")
        draw.save(draw.beside(pictures, COLUMNS), path)
        paths.append(path)
    return paths
