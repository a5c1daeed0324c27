"""The daemon's process: composition, start, stop and end."""
