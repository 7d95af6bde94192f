"""The 2D network for other runtimes, and checks that what was written computes the same.

Read `graph` first (what is exported), then `decode` (heatmaps to keypoints in NumPy: what an
application does itself) and `check` (differences on real images). One module for each runtime,
`to_onnx`, `to_coreml`, `to_executorch` and `to_litert`, writes a file and runs it; Core ML's, which
runs on Apple's systems only, is run by `mil`, an interpreter of its program, whose operations are
in `mil_operations`.
"""
