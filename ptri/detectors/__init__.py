"""Detectors of keypoints in crops, and of people in pictures, behind one protocol each.

In reading order: `protocol` (what every detector gives), `build` (the one that a configuration
names), `ours` (the 2D network of `ptri.models`), `centernet` (the network that both MoveNets
share), `peaks` (what a heatmap's peak says of an error), `movenet` (one person in a crop),
`multipose` (six persons in a picture), `rtm` (the networks of rtmlib) and `people` (who finds the
people in a picture).
"""
