"""2D detectors on rendered people before rigs of cameras, whose truth is exact.

Read in this order: `cases` (what a detector says of clips), `scores` (cameras and joints from it),
`command`.
"""
