"""The rig posterior and the networks against other methods, bounds and targets.

One folder for each question, with a module ``command*`` that `scripts/benchmark.py` runs: its
``add_arguments(parser)`` declares the options, its ``run(args)`` writes the results and returns the
text to print, or raises a `UserError`:

* `rigs`: layouts of cameras that the questions share;
* `rig`: the rig posterior on generated cases, beside bundle adjustment and other peers;
* `heads`: heads that fuse joints, on families of rigs that training never saw;
* `photos`: the 2D network on labelled photographs;
* `videos`: recordings from their videos, by each 2D detector;
* `detectors`: each 2D detector on rendered rigs, whose truth is exact;
* `truth`: what is stated of cameras and joints, against the truth, by real and made detectors;
* `speed`: time of the rig posterior, the 2D network, the renderer, and of training on a GPU.
"""
