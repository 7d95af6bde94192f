"""From 2D keypoints and intrinsics to cameras and joints: the one pipeline, and the public call.

Read `estimate` first: all eight steps, one after the other. Then its parts in their order: `check`
(what is given, checked; with `arrays` and `lenses`), `frames` (which frames say most), `starts`
(views lifted, left and right read, rigs to start from; with `detector`, what is known of the 2D
detector), `left_out` (a view that fits nowhere or saw nothing), `scale` (where millimetres come
from), `joints` (triangulated and fused), `result` (what comes out), `api` (the public call).
`persons` has several people in the frames, `known` cameras that were known before, `studio` those
of a studio, `advice` what to film next. `sync` finds by how much views are late, with `tracks`,
keypoints between their frames. `stream` does the same frame by frame. The posterior itself is in
`ptri.posterior`, the verdict in `ptri.verdict`.
"""
