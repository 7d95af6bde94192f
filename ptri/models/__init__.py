"""The networks. None of them solves for cameras: that is `ptri.rig`.

Read `network2d` first (image to keypoints; with `mobileone`, its backbone, and `heatmap`, its head
and decoding), then `lifter` (one view's keypoints to a skeleton), `fusion` (keypoints under camera
samples to joints; `heads` holds others, for ablation) and `pose_model`, which holds them all.
`weights` builds them from files and says what is known of a detector, `sizes` their architecture,
`losses` serves training.
"""
