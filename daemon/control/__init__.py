"""The operator's API on a unix socket."""
