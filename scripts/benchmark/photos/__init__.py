"""2D detectors on labelled persons in photographs.

Read in this order: `persons` (labels, crops, predictions), `peers` (other methods' keypoints),
`scores`, `pictures`, `command`.
"""
