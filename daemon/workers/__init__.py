"""Which source runs here: the release of this process, and every place where it differs from what was recorded."""
