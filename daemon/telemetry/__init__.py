"""Metrics, health and readiness, traces: what others scrape and collect. Nothing here decides anything about a message."""
