"""The control API on a unix socket: server, client, and the log events as a stream."""
