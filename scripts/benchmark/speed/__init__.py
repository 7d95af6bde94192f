"""Time of what users wait for.

Read in this order: `rig` and `command_rig` (the posterior), `network` and `command_network` (the 2D
network), `command_phones` (its packages for phones), `command_render` (the renderer),
`train` and `command_train` (training on a GPU), `waits` and `pretend` (what the CPU waits for).
"""
