"""Channels, through which messages come in and answers go out: one protocol, found through entry points, and the built-in channels."""
