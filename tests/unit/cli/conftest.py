"""The command line on a configuration of its own, called in this process."""

from tests.support.command_line_home import cli, home, operations

__all__ = ["cli", "home", "operations"]
