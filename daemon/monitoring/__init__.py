"""Metrics, health, readiness and queue lengths, for other programs to poll."""
