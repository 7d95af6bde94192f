"""What training and evaluation read: images of people with their cameras and joints.

Read in this order: `labels` (what is known of a data set's frames; the file of the Human3.6M
layout), `index` (the frames and views of a split, checked), `h36m` and `panoptic` (which these
are), `transforms` (crops with exact intrinsics), `augmentation`, `multiview` (samples), `loaders`
(batches for training and, scene by scene, for evaluation). Single images: `shards` (in tar files),
`annotations` and `coco` (persons in photographs); `mixture` makes one source of several. Beside
these: `panoptic_files` and `video_frames` (what Panoptic's files hold, and frames of videos) and
`h36m_build` (makes labels where the file is missing).
"""
