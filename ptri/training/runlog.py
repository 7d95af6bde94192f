"""The run folder.

``<out>/<name>/{config.yaml,log.txt,metrics.jsonl,tensorboard/,last.pt,best.pt}``. Only the first
process of a run writes here.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ptri import config as configuration
from ptri.config import Config
from ptri.errors import UserError

LOGGER = logging.getLogger("ptri")
LOGGER.addHandler(logging.NullHandler())  # silence where no run folder is open: other ranks
_OWN_FILES = ("config.yaml", "log.txt", "metrics.jsonl", "last.pt", "best.pt")


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Says whether a run may use the folder; changes nothing.

    Raises:
        UserError: the folder is there already, or there is nothing to resume.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if resume and not (folder / "last.pt").is_file():
        raise UserError(f"{folder}: nothing to resume, no last.pt; start without --resume")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another run.name")
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise UserError(
            f"{folder}: the run folder exists; continue it with --resume, replace it with "
            f"--overwrite, or choose another run.name"
        )


class RunLog:
    """A run's folder: text log, scalars and pictures.

    What is logged is shown at once, but nothing is written before `open`: a run that is refused, by
    whatever part of it, leaves no folder behind and takes nothing from an older run.

    Args:
        folder: checked with `check_folder`.
        config: written to config.yaml.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.is_open = False
        self.lines: int | None = None  # of metrics.jsonl; before `open` those to keep of the
        self.step = 0  # resumed checkpoint, whose step this is; None: a new run
        console, self._early = _TqdmHandler(), MemoryHandler(1000, logging.CRITICAL + 1)
        console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self._handlers: list[logging.Handler] = [console, self._early]
        LOGGER.setLevel(logging.INFO)
        for handler in self._handlers:
            LOGGER.addHandler(handler)

    def open(self) -> None:
        """Makes the folder, unless that is done.

        A new run removes an older run's own files from it; a resumed one what was logged after its
        checkpoint.
        """
        if self.is_open:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder, new = self.folder, self.lines is None
        metrics, board = folder / "metrics.jsonl", folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        if new:  # what an older run wrote goes, and nothing else
            for name in _OWN_FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(board, ignore_errors=True)
        (folder / "config.yaml").write_text(configuration.to_yaml(self.config), encoding="utf-8")
        kept = metrics.read_text().splitlines(True)[: self.lines] if metrics.exists() else []
        self.lines = len(kept)
        metrics.write_text("".join(kept))
        self._metrics = open(metrics, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(board), purge_step=None if new else self.step + 1)
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._early.setTarget(file)
        self._early.flush()
        LOGGER.removeHandler(self._early)
        LOGGER.addHandler(file)
        self._handlers.append(file)
        self.is_open = True

    def scalars(self, split: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Adds one line to metrics.jsonl and the values to TensorBoard under ``split/``."""
        plain = {key: float(value) for key, value in values.items()}
        line = {"split": split, "epoch": epoch, "step": step}
        # JSON knows no NaN
        line |= {key: value if math.isfinite(value) else None for key, value in plain.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self.lines += 1
        for key, value in plain.items():
            self._board.add_scalar(f"{split}/{key}", value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Adds pictures (H, W, 3) uint8 RGB to TensorBoard."""
        for name, picture in pictures.items():
            self._board.add_image(name, picture, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        """Closes the files and detaches the log handlers."""
        if self.is_open:
            self._metrics.close()
            self._board.close()
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()


class _TqdmHandler(logging.Handler):
    """Console output that does not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
