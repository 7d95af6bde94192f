"""How good a model is: measured over a data set or a recording, written and drawn.

Read in this order: `metrics` (errors and coverage of given estimates), `evaluate` (a data set from
its images to its figures, scene by scene), `predictions` (what predictions.h5 holds), `table` (the
figures by name, and as printed), `outputs` (the output folder), `run` (one set of cameras or
several), `pictures` with `draw` and `draw_rig` (what is drawn of a frame, over images, in 3D, and
of a rig), `data_report` (what a data set's files hold and lack).
"""
