"""Recordings of one's own: keypoint files or videos of static cameras in; cameras and joints out.

In reading order: `run` (what ``infer3d.py`` does), `intrinsics` (camera files), `keypoint_files`
(OpenPose's JSON, and the `Recording` that everything after it takes); for videos `videos` (files
read in step), `boxes` (where the person is, as the user says), `detect` (the loop over the frames),
`crops` (where it looks), `look` (a detector on crops), `detections` (its result) and `cache` (that
in a file). Who is followed, for both: `candidates` (everybody who was seen), `tracklets` (the same
person on end, within a view), `agreement` (the same person in other views), `subject` (the choice).
Then `clocks` (cameras brought in step), `known` (cameras known before), `solve` and `report`.
"""
