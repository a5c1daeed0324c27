"""The log: events with fields, rendered for people or as JSON lines, to files and streams."""
