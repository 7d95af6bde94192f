"""Fits the error model of generated keypoints to a 2D network's errors (`scripts/fit_errors.py`)."""
