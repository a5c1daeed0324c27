"""The running bus: accept, wake, deliver, sweep, supervise."""
