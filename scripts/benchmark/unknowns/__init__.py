"""What users do not know of their cameras: when they started. `clocks`, then `command`."""
