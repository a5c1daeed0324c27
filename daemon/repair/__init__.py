"""What an operator changes: verified backups, the stale sweep, restore. Every repair tells who and why."""
