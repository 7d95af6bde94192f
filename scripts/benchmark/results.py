"""What a command leaves behind: its text, and everything it printed as JSON."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ptri.errors import UserError
from ptri.evaluation.outputs import write_json


def check_names(folders: Sequence[Path]) -> None:
    """Results go by the folders' names.

    Raises:
        UserError: two of the same name.
    """
    names = [folder.resolve().name for folder in folders]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"two folders are called {twice[0]!r}, and so would their results; rename one"
        )


def write_results(
    args: argparse.Namespace,
    name: str,
    text: str,
    content: dict[str, Any],
    pictures: str = "",
    **settings: Any,
) -> str:
    """Writes ``name.txt`` and ``name.json`` into the folder ``args.out``.

    Args:
        content: what the JSON holds beside the settings.
        pictures: what else was written, in words.
        settings: to be written beside or instead of the arguments.

    Returns:
        The text to print.
    """
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**vars(args), **settings}
    settings["seconds"] = time.perf_counter() - settings.pop("start")
    settings |= {"python": platform.python_version(), "torch": torch.__version__}
    (folder / f"{name}.txt").write_text(text + "\n")
    write_json(folder / f"{name}.json", {"settings": settings, **content})
    files = f"{name}.txt, {name}.json" + f", {pictures}" * bool(pictures)
    return f"{text}\n\nwritten: {files} in {folder}/"
