"""The daemons of the integration tests: each is ended, and its folder checked, after every test; a failure shows its log."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest

from tests.support.daemon import RealDaemon
from tests.support.invariants import data_folder_violations

Make = Callable[..., RealDaemon]
MADE: Final = pytest.StashKey[list[RealDaemon]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put the log's tail of every daemon of a failed test into its report."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        daemons = [value for value in item.funcargs.values() if isinstance(value, RealDaemon)]
        for daemon in {id(one): one for one in [*daemons, *item.stash.get(MADE, [])]}.values():
            report.sections.append((f"daemon in {daemon.data}", daemon.log_tail()))
    return report


@contextmanager
def _checked(daemon: RealDaemon) -> Iterator[RealDaemon]:
    """A daemon for one test, ended in any case; its folder must keep every invariant of its files."""
    try:
        yield daemon
        daemon.end_quietly()
        if daemon.was_ready:
            check(daemon)
    finally:
        daemon.close()


def check(daemon: RealDaemon, *, wait_s: float = 0.0) -> None:
    """Raise AssertionError unless the folder keeps every invariant, `wait_s` seconds from now at the latest."""
    deadline = time.monotonic() + wait_s
    while True:
        found = data_folder_violations(daemon.data, at_rest=daemon.at_rest, hostile=daemon.hostile)
        if not found or time.monotonic() >= deadline:
            break
        time.sleep(0.1)  # a commit under way; nothing tells its end to another process
    assert not found, "\n".join(found) + "\n" + daemon.log_tail()


@pytest.fixture
def make_daemon(request: pytest.FixtureRequest) -> Iterator[Make]:
    """`make_daemon(...)`: a RealDaemon, not yet started."""
    made: list[RealDaemon] = request.node.stash.setdefault(MADE, [])

    def make(*args: Any, **keys: Any) -> RealDaemon:
        daemon = stack.enter_context(_checked(RealDaemon(*args, **keys)))
        made.append(daemon)
        return daemon

    with ExitStack() as stack:
        yield make


@pytest.fixture(scope="session")
def checked_after() -> Callable[[RealDaemon], None]:
    """For a daemon that serves many tests: check its folder while it runs."""
    return lambda daemon: check(daemon, wait_s=5.0)
