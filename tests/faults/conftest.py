"""The daemons of the fault tests: every one is ended and its folder checked, whatever the test did."""

import os

import pytest

from tests.integration.conftest import make_daemon, pytest_runtest_makereport

__all__ = ["make_daemon", "pytest_collection_modifyitems", "pytest_runtest_makereport"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A dockerd of its own is started and killed only where that was asked for; elsewhere those tests are not selected."""
    if os.environ.get("CLAWBUS_FAULTS_DOCKERD") == "1":
        return
    left_out = [item for item in items if "private" in getattr(item, "fixturenames", ())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
