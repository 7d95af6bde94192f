"""Recordings from their videos, by each 2D detector, against a reference or exact truth.

Read in this order: `rendered` (rendered rigs as recordings), `scores`, `command`.
"""
