"""All methods on the same cells: scores by method, kept on disk so that a stopped run resumes."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ptri.benchmark import adjust, ours, peers
from ptri.benchmark.bound import bound
from ptri.benchmark.cases import Cases, Cell, People, make_cases, select
from ptri.benchmark.grid import OURS, Part, num_cases
from ptri.benchmark.scores import Estimate, flatten, joined, score

ROOT = Path(__file__).resolve().parents[1]
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


Solve = Callable[[Cases], Estimate]


def make_method(name: str, options: Options) -> Solve:
    """A method by name.

    Raises:
        NotInstalledError: its library is missing.
        UserError: bad settings.
    """
    if name in OURS:
        geometry = name == "ours-geometry"
        model = ours.make_model(options.overrides, options.config, geometry)
        return lambda cases: ours.solve(model, cases, options.seed)
    if name.startswith("ba-"):
        _, start, loss = name.split("-")
        loss = {"softl1": "soft_l1", "cauchy": "cauchy"}[loss]
        peer = adjust.bundle_adjustment(loss, {"fivepoint": "five-point"}.get(start, start))
    elif name == "humancalib":
        from ptri.benchmark.human import human_calib

        peer = human_calib()
    elif name == "calibrated":
        peer = peers.calibrated
    else:
        peer = {"opencv": peers.opencv, "poselib": peers.poselib}[name]()
    return lambda cases: peers.run_peer(peer, cases, options.seed)


def run_grid(
    grid: list[Part], options: Options, folder: Path, fresh: bool = False
) -> Iterator[Result]:
    """Runs, or reads, every method on every cell.

    Args:
        folder: receives one file per cell and method, which a later run with equal settings and
            equal sources takes instead of computing it. fresh: compute everything.
    """
    methods: dict[str, Solve | str] = {}
    total = sum(len(part.methods) for part in grid)
    with tqdm(total=total, unit="cell", disable=None) as bar:
        for part in grid:
            count = num_cases(options.count, part.cell.num_frames)
            cases = make_cases(
                part.cell, count, options.seed, options.people, stated=options.stated
            )
            independent = part.cell.errors == "gaussian"  # what the bound holds for
            limit = bound(cases).rotation.numpy() if independent else None
            ceiling = None
            for name in sorted(part.methods, key=lambda name: name != "calibrated"):
                bar.set_postfix_str(f"{part.cell.name} {name}")
                path = folder / part.cell.name / f"{name}.npz"
                key = _key(part.cell, name, options)
                scores = None if fresh else _read(path, key)
                if scores is None:
                    if name not in methods:
                        methods[name] = _make(name, options)
                    solve = methods[name]
                    if isinstance(solve, str):
                        bar.update()
                        yield Result(part.cell, name, {}, solve)
                        continue
                    scores = _run(solve, cases, name in OURS)
                    _write(path, key, scores)
                if name == "calibrated":
                    ceiling = scores["n_mpjpe"]
                bar.update()
                yield Result(part.cell, name, flatten(scores, limit, ceiling), "")


def _make(name: str, options: Options) -> Solve | str:
    try:
        return make_method(name, options)
    except peers.NotInstalledError as error:
        return f"not installed: {error}"


def _run(solve: Solve, cases: Cases, batched: bool) -> dict[str, np.ndarray]:
    """Scores of all cases, in chunks of a size that memory holds."""
    B, T = cases.K.shape[:2]
    size = max(_FRAMES_AT_ONCE // T, 1) if batched else B
    parts = []
    for first in range(0, B, size):
        chunk = select(cases, slice(first, first + size))
        parts.append(score(chunk, solve(chunk)))
    return joined(parts)


# --- results on disk -------------------------------------------------------------------------


def _key(cell: Cell, method: str, options: Options) -> str:
    """Changes with everything a result depends on: settings, sources, weights."""
    parts = [repr((cell, method, options)), _sources_digest(method in OURS)]
    if method in OURS and options.config is not None:
        parts.append(Path(options.config).read_text() if Path(options.config).is_file() else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache  # of the sources that this process runs, should they change meanwhile
def _sources_digest(of_ours: bool) -> str:
    own = ("ours",) if of_ours else ("peers", "adjust", "human")
    paths = [ROOT / "benchmark" / f"{name}.py" for name in ("cases", "rigs", "scores", *own)]
    patterns = ["geometry/*.py", "data/*.py", "metrics.py", "skeleton.py"]
    if of_ours:
        patterns += ["models/*.py", "build.py", "config.py", "distributions.py"]
        patterns += ["posterior*.py", "verdict.py", "diagnosis.py"]
        paths.append(Path(ours.WEIGHTS))
    paths += [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        if str(data["key"]) != key:
            return None
        return {name: data[name] for name in data.files if name != "key"}


def _write(path: Path, key: str, scores: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{time.time_ns()}.npz")
    np.savez(part, key=key, **scores)
    part.replace(path)
