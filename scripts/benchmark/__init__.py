"""The rig posterior against other methods, bounds and targets, on generated cases."""
