"""Forensics and the stale sweep of an Inngest server's `main.db`. Needs `schema`, `maintenance/backup.py` and the standard library."""
