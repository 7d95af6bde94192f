"""Does what is stated hold? Regions, verdicts and blame by several detectors, against the truth."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from detector_errors.clips import detect
from detector_errors.named import named_detector
from tqdm import tqdm

from benchmark.cache import make_key
from benchmark.detectors.cases import clips_config, detected
from benchmark.figures import targets_table
from benchmark.results import check_names, write_results
from benchmark.rig.ours import WEIGHTS, make_model
from benchmark.truth import alike, plots, tables
from benchmark.truth.cases import (
    GENERATED,
    THINNED,
    Case,
    Root,
    first_views,
    generated_cases,
    read_root,
    rendered_cases,
)
from benchmark.truth.cells import Cell, Result, read_result, solve_cell, write_result
from benchmark.truth.peers import CropWriter, Peer, write_names
from benchmark.truth.targets import POOLED, judge, stands_alone
from ptri.data.annotations import read_json
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.people.rigs import family_indices

DATA = Path("data/rendered_truth")
UNKNOWN = "-unknown"  # behind a detector's name: without covariances, and nothing known
DETECTORS = ("movenet", "ours", "multipose")
FAMILIES = ("corner", "random", "dome", "ring", "wall")  # of generated rigs
FRAMES = (1, 10, 50)
THINNED_FRAMES = 10
WINDOWS = {1: 4, 10: 2, 50: 1}  # of a clip, at most, of so many frames or more


class Options(NamedTuple):
    """What changes the figures of a cell."""

    cases: int  # generated, of a family at T = 1; half at 10, a quarter at 50
    windows: int  # of a clip at T = 1; see `WINDOWS`
    views: int | None  # of each rig; None: all
    seed: int
    overrides: tuple[str, ...]
    config: str | None
    weights: str
    peers: tuple[str, ...]
    detections: str  # folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("roots", nargs="*", help=f"rigs of scripts/render_people.py; default: all in {DATA}")
    text = f"of {', '.join((*DETECTORS, *GENERATED))}, or another with {UNKNOWN} behind its name"
    add("--detectors", nargs="+", metavar="NAME", help=f"{text}; default: all of these")
    add("--peer", nargs="+", default=[], metavar="JSON", help="keypoints of scripts/peer_*.py")
    add("--write-crops", metavar="FOLDER", help="only write the crops, for a peer")
    add("--families", nargs="+", metavar="NAME", help="of rigs; default: all")
    add("--frames", nargs="+", type=int, metavar="T", help=f"default {FRAMES}")
    add("--views", type=int, metavar="V", help="only the first so many of each rig; default: all")
    add("--cases", type=int, metavar="N", help="generated rigs of a family, T = 1 (16)")
    add("--alike", action="store_true", help="only how alike errors are over postures and joints")
    add("--quick", action="store_true", help="two detectors, T = 1 and 10, few rigs")
    add("--against", metavar="JSON", help="an earlier truth.json, whose figures stand beside")
    add("--keep", action="store_true", help="take earlier results of other sources and settings")
    add("--config", metavar="YAML", help="settings, such as the posterior's")
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--weights", default=WEIGHTS, help="of lifter and fusion")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="processes")
    add("--out", default="outputs/benchmark", help="folder for tables, picture and results")
    add("--detections", metavar="FOLDER", help="keeps the detectors' keypoints; default: --out")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    folder, roots = Path(args.out), choose_roots(args)
    if args.write_crops:
        return _write_crops(roots, Path(args.write_crops))
    quick = ["movenet", "gaussian"] if args.quick else [*DETECTORS, *GENERATED]
    names = args.detectors or [*quick, *(Path(path).stem for path in args.peer)]
    frames = args.frames or (FRAMES[:2] if args.quick else FRAMES)
    if min(frames) < 1:
        raise UserError(f"--frames {min(frames)}: at least 1")
    if args.views is not None and args.views < 2:
        raise UserError(f"--views {args.views}: at least 2")
    detections = args.detections or args.out
    numbers = (args.cases or (2 if args.quick else 16), 1 if args.quick else WINDOWS[1], args.views)
    rest = (args.seed, tuple(args.set), args.config, args.weights, tuple(args.peer), detections)
    options = Options(*numbers, *rest)
    make_model(options.overrides, options.config)  # fails before the long work
    earlier = read_earlier(args.against) if args.against else {}
    cells = list(make_cells(roots, names, frames, args))
    for root in tqdm(roots, "detections", unit="folder", disable=None):
        for name in dict.fromkeys(n.removesuffix(UNKNOWN) for n in names if n not in GENERATED):
            find(name, root, options)
    if args.alike:
        return write_results(args, "alike", _alike(names, roots, options), {})
    job = functools.partial(
        run_cell, options=options, roots=roots, folder=folder / "truth", keep=args.keep
    )
    if not cells:
        raise UserError(
            f"nothing to solve: no rendered rigs named or in {DATA} (docs/benchmark.md has the "
            "commands that render them), none of these --families, or clips shorter than --frames"
        )
    results = _all(job, cells, args.jobs)
    rows = tables.make_rows(results)
    figures = tables.summaries(rows)
    judged = [
        target._replace(note=earlier.get((target.label, target.column), ""))
        for row, part in sorted(zip(rows, figures), key=lambda pair: names.index(pair[0].detector))
        if not row.kind and (row.family == POOLED or stands_alone(row.family))
        for target in judge(row.detector, row.family, row.num_frames, part)
    ]
    text = f"{tables.text_of(rows, figures)}\n\n{targets_table('Targets', judged)}"
    plots.reliability(rows, folder / "truth.png")
    content = {
        "targets": [row.to_json() for row in judged],
        "rows": tables.to_json(rows, figures),
    }
    chosen = {"detectors": names, "frames": list(frames), "roots": [str(r.path) for r in roots]}
    return write_results(args, "truth", text, content, "truth.png", **chosen)


def choose_roots(args: argparse.Namespace) -> list[Root]:
    """The folders of rendered people, those in `DATA` where none is named.

    Raises:
        UserError: one holds no rigs; two of one name.
    """
    paths = args.roots or sorted(path.parents[1] for path in DATA.glob("*/extra/*settings.json"))
    check_names([Path(path) for path in paths])
    if args.families:
        family_indices([name.split()[0] for name in args.families], "--families")
    return [root for root in map(read_root, paths) if _chosen(root.family, args)]


def _chosen(family: str, args: argparse.Namespace) -> bool:
    return not args.families or family in args.families


def make_cells(
    roots: list[Root], names: list[str], frames: list[int], args: argparse.Namespace
) -> Iterator[Cell]:
    """What is solved, real detectors first."""
    for T in frames:
        long_enough = [root for root in roots if root.length >= T]
        for name in names:
            if name in GENERATED:
                yield from (Cell(name, f, "", T) for f in FAMILIES if _chosen(f, args))
            else:
                yield from (Cell(name, r.family, r.path.name, T) for r in long_enough)
    long_enough = [root for root in roots if root.length >= THINNED_FRAMES in frames]
    for name in names:
        for kind in filter(None, THINNED):
            for root in long_enough if name not in GENERATED else ():
                yield Cell(name, root.family, root.path.name, THINNED_FRAMES, kind)


def read_earlier(path: str) -> dict[tuple[str, str], str]:
    """The figures of an earlier run's targets, in words, by label and column.

    Raises:
        UserError: no such file, or another one.
    """
    content = read_json(path)
    try:
        rows = [row for row in content["targets"] if row["met"] is not None]  # measured
        return {(r["label"], r["column"]): f"was {100 * r['figure']['value']:.0f}" for r in rows}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no truth.json of benchmark.py truth ({type(error).__name__} {error})"
        ) from None


def find(name: str, root: Root, options: Options):
    """What a detector says of a folder's clips, as kept on disk, and what is known of it."""
    detector = _detector(name, root, options.peers)
    found = detected(root.path, detector, root.length, Path(options.detections))
    return found, detector.known


def _detector(name: str, root: Root, peers: tuple[str, ...]) -> PoseDetector:
    paths = {Path(path).stem: path for path in peers}
    return Peer(paths[name], root.path.name) if name in paths else named_detector(name)


def run_cell(cell: Cell, options: Options, roots: list[Root], folder: Path, keep: bool) -> Result:
    """Solves, or reads, the cases of a cell."""
    cases = _cases(cell, options, roots)
    if options.views is not None:
        cases = [first_views(case, options.views) for case in cases]
    model, settings = _model(options)
    views = "" if options.views is None else f"-{options.views}views"
    path = folder / f"{cell.name}{views}.npz"
    files = [options.weights, *filter(None, [options.config])]
    given = (part for case in cases for part in (case.xy, case.K, case.confidence, case.covariance))
    digest = [float(part.nan_to_num().sum()) for part in given if part is not None]
    numbers = options.seed, options.overrides
    key = make_key((cell, numbers, digest), files)
    result = read_result(cell, path, None if keep else key)
    if result is None:
        result = solve_cell(cell, cases, model, settings, options.seed)
        write_result(result, path, key)
    return result


def _cases(cell: Cell, options: Options, roots: list[Root]) -> list[Case]:
    T = cell.num_frames
    size = max(least for least in WINDOWS if least <= T)
    if cell.detector in GENERATED:
        factor = {1: 1, 10: 2, 50: 4}[size]
        return generated_cases(cell.detector, cell.family, T, max(options.cases // factor, 2))
    root = next(root for root in roots if root.path.name == cell.source)
    name = cell.detector.removesuffix(UNKNOWN)
    found, known = find(name, root, options)
    known = known if name == cell.detector else None
    most = min(WINDOWS[size], options.windows) if not cell.kind else 1
    return rendered_cases(found, known, T, most, cell.kind)


@functools.lru_cache(maxsize=1)
def _model(options: Options):
    overrides = (f"init.checkpoint_3d={options.weights}", *options.overrides)
    return make_model(overrides, options.config)


def _all(job, cells: list[Cell], jobs: int) -> list[Result]:
    show = functools.partial(tqdm, total=len(cells), desc="cells", unit="cell", disable=None)
    if jobs == 1:
        return list(show(map(job, cells)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        return list(show(pool.map(job, cells)))


def _alike(names: list[str], roots: list[Root], options: Options) -> str:
    real = dict.fromkeys(n.removesuffix(UNKNOWN) for n in names if n not in GENERATED)
    found = {name: alike.alike([find(name, root, options)[0] for root in roots]) for name in real}
    return alike.table(found)


def _write_crops(roots: list[Root], folder: Path) -> str:
    names = []
    for root in roots:
        writer = CropWriter(folder, root.path.name)
        detect(writer, clips_config(root.path), root.length, least=1)
        names += writer.names
    write_names(folder, names)
    return f"{len(names)} crops written to {folder}/"
