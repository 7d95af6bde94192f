"""Fits the errors of generated keypoints to a 2D network's (`scripts/fit_errors.py`)."""
