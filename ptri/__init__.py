"""ptri: 3D human pose from several cameras whose poses are unknown."""

__version__ = "0.1.0"
