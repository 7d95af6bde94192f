"""From meshes to pixels: `gl` (the renderer), `figure` (a person's buffers), `smooth`, `sensor`.

The shaders lie beside them.
"""
