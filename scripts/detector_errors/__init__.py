"""Fits the errors of generated keypoints to a 2D network's (`scripts/fit_errors.py`).

Read in this order: `clips` (known people with what a detector says of them), `truth` (what is true
of them in each view), `bones`, `exchanges` and `moments` (statistics of errors), `fit` (the error
model's settings from them), `checks` (what was not fitted), `report`.
"""
