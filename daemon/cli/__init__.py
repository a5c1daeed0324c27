"""The clawbus command: one file per subcommand."""

from daemon.cli.process_start import hold

hold()  # before the other imports, which take long enough for a signal to come
