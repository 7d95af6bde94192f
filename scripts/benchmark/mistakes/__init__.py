"""Plausible mistakes in what a user hands over, and what is said of each.

Read in this order: `cases` (people before rigs), `table` (the mistakes), `scores` (what came of
one), `files` (the same in recordings), `command`.
"""
