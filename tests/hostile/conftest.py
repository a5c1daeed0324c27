"""Daemons and the agents' image for the hostile tests; every daemon is ended, and its folder checked."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import make_daemon, pytest_runtest_makereport
from tests.support.agent_image import agent_image

__all__ = ["make_daemon", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def image(base_image: str) -> Iterator[str]:
    """The agents' image, once for all."""
    with agent_image(base_image) as tag:
        yield tag
