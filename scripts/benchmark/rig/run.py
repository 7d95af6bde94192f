"""All methods on the same cells: scores by method, kept on disk so that a stopped run resumes."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmark.cache import make_key
from benchmark.rig import adjust, ours, peers
from benchmark.rig.bound import bound, bound_with_body
from benchmark.rig.cases import Cases, Cell, People, make_cases
from benchmark.rig.grid import METHODS, OURS, Part, num_cases
from benchmark.rig.human import human_calib
from benchmark.rig.scores import Answer, flatten, pool, score
from ptri.checkpoint import replacing
from ptri.posterior.body import load_body_prior
from ptri.structures import take

_RIGID = 0.005  # relative, how far bones of generated people may change over frames
_FRAMES_AT_ONCE = 64  # frames of one call of our own estimator


class Options(NamedTuple):
    """What changes the figures of a cell."""

    count: int = 64  # cases at T = 1; see `num_cases`
    seed: int = 0
    people: People = People()
    stated: float | None = 3.0  # px that methods are told; None: the true noise
    overrides: tuple[str, ...] = ()  # settings of our own estimator
    config: str | None = None


class Result(NamedTuple):
    """A method on a cell."""

    cell: Cell
    method: str
    flat: dict[str, np.ndarray]  # of `flatten`; empty where the method is not installed
    note: str  # why it is empty


Solve = Callable[[Cases], Answer]
PEERS: dict[str, Callable[[], peers.Peer]] = {
    "opencv": lambda: peers.five_point,
    "poselib": peers.poselib,
    "humancalib": human_calib,
    "calibrated": lambda: peers.calibrated,
    **{
        f"ba-{start}-{loss.replace('_', '')}": functools.partial(
            adjust.bundle_adjustment, loss, start
        )
        for start in ("fivepoint", "truth")
        for loss in adjust.LOSSES
    },
}


@functools.cache  # once per process
def make_method(name: str, options: Options) -> Solve | str:
    """A method by name, or why there is none.

    Raises:
        UserError: bad settings.
    """
    if name in OURS:
        geometry = name == "ours-geometry"
        model, settings = ours.make_model(options.overrides, options.config, geometry)
        return lambda cases: ours.solve(model, settings, cases, options.seed)
    try:
        peer = PEERS[name]()
    except peers.NotInstalledError as error:
        return f"not installed: {error}"
    return lambda cases: peers.run_peer(peer, cases, options.seed)


def run_grid(
    grid: list[Part], options: Options, folder: Path, fresh: bool = False, jobs: int = 1
) -> list[Result]:
    """Runs, or reads, every method on every cell.

    Args:
        folder: receives one file per cell and method, which a later run with equal settings and
            equal sources takes instead of computing it. fresh: compute everything.
        jobs: processes; with more than one, times are those of a busy machine.
    """
    job = functools.partial(run_part, options=options, folder=folder, fresh=fresh)
    show = functools.partial(tqdm, total=len(grid), unit="cell", disable=None)
    if jobs == 1:
        return list(chain.from_iterable(show(map(job, grid))))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        return list(chain.from_iterable(show(pool.map(job, grid))))


def run_part(part: Part, options: Options, folder: Path, fresh: bool) -> list[Result]:
    """Runs, or reads, every method on one cell."""
    count = num_cases(options.count, part.cell.num_frames)
    cases = make_cases(part.cell, count, options.seed, options.people, stated=options.stated)
    limit, body = bound(cases, part.cell), None
    if (
        part.cell.errors == "gaussian"
    ):  # the law that the bodies were drawn from, whose bones are rigid
        prior = load_body_prior(slack=_RIGID, spread=options.people.bone_spread)
        body = bound_with_body(cases, prior).numpy()
    results, ceiling = [], None
    for name in sorted(part.methods, key=lambda name: name != "calibrated"):
        path = folder / part.cell.name / f"{name}.npz"
        key = _key(part.cell, name, options)
        scores = None if fresh else _read(path, key)
        if scores is None:
            solve = make_method(name, options)
            if isinstance(solve, str):
                results.append(Result(part.cell, name, {}, solve))
                continue
            scores = _run(solve, cases, name in OURS)
            _write(path, key, scores)
        if name == "calibrated":
            ceiling = scores["n_mpjpe"]
        results.append(Result(part.cell, name, flatten(scores, limit.numpy(), ceiling, body), ""))
    return sorted(results, key=lambda result: METHODS.index(result.method))


def _run(solve: Solve, cases: Cases, batched: bool) -> dict[str, np.ndarray]:
    """Scores of all cases, in chunks of a size that memory holds."""
    B, T = cases.K.shape[:2]
    size = max(_FRAMES_AT_ONCE // T, 1) if batched else B
    parts = []
    for first in range(0, B, size):
        chunk = take(cases, slice(first, first + size))
        parts.append(score(chunk, solve(chunk)))
    return pool(parts)


# --- results on disk -------------------------------------------------------------------------


def _key(cell: Cell, method: str, options: Options) -> str:
    """Changes with everything a result depends on."""
    files = [options.people.mocap] if options.people.mocap else []
    if method in OURS:
        files += [ours.WEIGHTS, *filter(None, [options.config])]
    return make_key((cell, method, options), files)


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        if str(data["key"]) != key:
            return None
        return {name: data[name] for name in data.files if name != "key"}


def _write(path: Path, key: str, scores: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, **scores)
