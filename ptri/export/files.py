"""Exported files, of which Core ML's packages are folders; and what is missing to write them."""

from __future__ import annotations

import shutil
from pathlib import Path

from ptri.errors import UserError


def remove(target: Path) -> None:
    """Removes a file or a package, if it is there."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def megabytes(target: Path) -> float:
    """The size of a file, or of all files of a package."""
    files = target.rglob("*") if target.is_dir() else [target]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def missing(error: ImportError, runtime: str) -> UserError:
    """Says which package a runtime lacks, and how to get it."""
    return UserError(
        f"{error.name} is missing; make {runtime} makes an environment with it, .venv-{runtime}, "
        "whose Python runs this script"
    )
