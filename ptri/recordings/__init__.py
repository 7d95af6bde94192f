"""Recordings of one's own: keypoint files or videos of static cameras in; cameras and joints out.

In reading order: `run` (what ``infer3d.py`` does), `intrinsics` (camera files), `keypoint_files`
(OpenPose's JSON, and the `Recording` that everything after it takes), `subject` (who is followed);
for videos `videos` (files read in step), `boxes` (where the person is), `look` (the 2D network on
crops), `crops` (which ones), `detect` (the loop over the frames), `detections` (its result) and
`cache` (that in a file); then `solve` and `report`.
"""
