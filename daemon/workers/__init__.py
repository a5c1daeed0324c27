"""Finds which source runs here: the release of this process, and its differences from what was recorded."""
