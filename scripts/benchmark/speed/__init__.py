"""Time of what users wait for.

Read in this order: `rig` and `command_rig` (the posterior), `network` and `command_network` (the 2D
network), `command_render` (the renderer).
"""
