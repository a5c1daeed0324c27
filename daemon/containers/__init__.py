"""Where agents run: one protocol, its implementations, the pure spec and the supervisor."""
