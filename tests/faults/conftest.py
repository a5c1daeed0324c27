"""The daemons of the fault tests: every one is ended and its folder checked, whatever the test did."""

from tests.integration.conftest import make_daemon, pytest_runtest_makereport

__all__ = ["make_daemon", "pytest_runtest_makereport"]
