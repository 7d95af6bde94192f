"""HumanCalib (PyPI ``humancalib``) as a peer."""

from __future__ import annotations

from ptri.benchmark.peers import NotInstalledError, Peer


def human_calib() -> Peer:
    raise NotInstalledError("humancalib: to be written")
