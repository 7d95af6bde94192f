"""What users do not know of their cameras: when they started (`clocks`), and how long their lenses
are (`focal`); then `command`."""
