"""Memory of CPU training: keep what was freed instead of handing it back to the system."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes glibc reuse large freed blocks; returns whether it could (False on other systems).

    By default every activation above 32 MB is a fresh mapping whose pages the kernel must clear
    first. On two AVX2 cores this makes a training step of the 2D network 1.2 to 1.7 times faster
    (docs/decisions.md); the process keeps its peak memory until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
