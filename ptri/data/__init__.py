"""What training and evaluation read: images of people with their cameras and joints.

Read in this order: `labels` (the labels file of the Human3.6M layout), `h36m_index` (which frames
and views a split has, checked), `transforms` (crops with exact intrinsics), `augmentation`, `h36m`
(samples; several data sets as one), `loaders` (batches for training and, scene by scene, for
evaluation). Beside these: `shards` (single images in tar files) and `h36m_build` (makes labels
where the file is missing).
"""
