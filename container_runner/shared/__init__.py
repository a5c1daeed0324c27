"""What the runner's loop and its providers both need: errors, child processes, and time that stops while frozen."""
