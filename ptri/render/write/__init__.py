"""Rendered data sets on disk: Human3.6M's layout (`layout`) or WebDataset shards (`shards`)."""
