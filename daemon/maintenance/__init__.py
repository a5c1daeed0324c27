"""Changes made by an operator or a rule: backups, restores, repairs, the stale sweep, retention."""
