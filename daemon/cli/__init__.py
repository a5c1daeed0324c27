"""The clawbus command: one file per subcommand."""
