"""Forensics and the stale sweep of an Inngest server's `main.db`. Needs `schema`, `repair/backup.py` and the standard library."""
