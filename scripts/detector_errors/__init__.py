"""Fits the errors of generated keypoints to a 2D detector's (`scripts/fit_errors.py`).

Read in this order: `named` and `multipose` (detectors), `clips` (known people with what a detector
says of them), `ellipses` (of detectors whose covariances come from peaks), `truth` (what is true of
the people in each view), `bones`, `exchanges` and `moments` (statistics of errors), `fit` (the
error model's settings from them), `checks` (what was not fitted), `report`; and `pool` (the
keypoints themselves to train on, `scripts/pool_detections.py`).
"""
