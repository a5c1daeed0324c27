"""What others scrape: metrics, health, readiness and the length of every queue."""
