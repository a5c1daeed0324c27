"""Shared by the runner's loop and its providers: errors, child processes, and time that stops while frozen."""
