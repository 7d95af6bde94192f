"""The rig posterior beside other methods on generated cases with known truth.

Read in this order: `cases` (people, rigs, keypoints with errors), `grid` (which cells are run),
`bound` (Cramer-Rao bounds), `ours`, `peers`, `adjust`, `human` (the methods),
`scores`, `run` (all methods on all cells, kept on disk), `targets`, `tables`, `plots`, `command`.
"""
