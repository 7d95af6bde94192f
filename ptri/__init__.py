"""ptri: 3D human pose from several cameras whose poses are unknown."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptri.rig.api import estimate_rig
    from ptri.rig.known import KnownCameras
    from ptri.rig.result import RigEstimate
    from ptri.rig.stream import RigFilter

__version__ = "0.1.0"
__all__ = ["KnownCameras", "RigEstimate", "RigFilter", "estimate_rig"]

_HOME = {
    "estimate_rig": "api",
    "KnownCameras": "known",
    "RigEstimate": "result",
    "RigFilter": "stream",
}


def __getattr__(name: str):
    """Imports the public names on first use: torch alone takes seconds (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'ptri' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ptri.rig.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
