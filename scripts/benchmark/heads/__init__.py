"""Heads that fuse joints on families of rigs that training never saw.

Read in this order: `unseen` (scenes, solved rigs, scores), `weights` (heads from files, all of them
evaluated), `tables`, `command_unseen` (trains nothing), `command_ablations` (trains all heads).
"""
