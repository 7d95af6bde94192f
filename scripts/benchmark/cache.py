"""Which results on disk are still those of the sources, weights and settings at hand."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_READ = ROOT / "ptri/render"  # no figure that is kept depends on it


def sources() -> list[Path]:
    """Every source and table that a figure may depend on."""
    folders = [ROOT / "ptri", ROOT / "scripts/benchmark"]
    files = [path for folder in folders for path in folder.rglob("*.*")]
    files = [path for path in files if path.suffix in (".py", ".json")]
    return sorted(path for path in files if NOT_READ not in path.parents)


def make_key(settings: object, files: Iterable[str | Path] = ()) -> str:
    """Changes with the settings, the sources and the files' content.

    Args:
        settings: with a ``repr`` that says all. files: weights, motion capture, configurations.
    """
    return _digest([repr(settings).encode(), _sources_digest().encode(), *map(_content, files)])


@functools.cache  # of the sources that this process runs, should they change meanwhile
def _sources_digest() -> str:
    return _digest(map(_content, sources()))


def _content(path: str | Path) -> bytes:
    return Path(path).read_bytes() if Path(path).is_file() else b""


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())  # so that parts cannot run into each other
    return total.hexdigest()
