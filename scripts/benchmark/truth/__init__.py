"""Does what is stated hold? Rigs whose truth is known exactly, by several 2D detectors.

Read in this order: `peers` (detectors that are not ours to run), `cases` (rigs to solve, rendered
or generated), `plain` (two plain solves to compare with), `scores` (what a solved case says, beside
the truth), `cells` (all cases of a kind, kept on disk), `figures` (shares and quantiles with
intervals), `targets`, `tables`, `plots`, `alike` (how alike errors are), `command`.
"""
