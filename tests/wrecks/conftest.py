"""The daemons of the wrecks: each is ended, and its folder checked, after every test; a failure shows its log."""

from tests.integration.conftest import make_daemon, pytest_runtest_makereport

__all__ = ["make_daemon", "pytest_runtest_makereport"]
