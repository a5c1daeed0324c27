"""The clawbus command: one file per subcommand."""

from daemon.cli.held_signals import hold

hold()  # before the other imports, which take long enough for a signal to come
