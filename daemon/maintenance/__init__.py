"""What an operator or a rule changes: backups, restores, repairs, the stale sweep, retention."""
