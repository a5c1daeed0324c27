"""What every test may use: the event loop, and the honest answer to "is Docker there?".

A test that needs Docker says so with a marker. Without Docker it is skipped with the reason; with
CLAWBUS_REQUIRE_DOCKER=1 (as `.ci/run` sets it) it fails instead, so that a green run cannot hide what was not run.
"""

import gc
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import docker
import pytest
import structlog
from docker.errors import DockerException, ImageNotFound
from hypothesis import HealthCheck, settings
from requests.exceptions import RequestException

BASE_IMAGE_VARIABLE: Final = "CLAWBUS_TEST_BASE_IMAGE"
SYSTEMD_IMAGE_VARIABLE: Final = "CLAWBUS_TEST_SYSTEMD_IMAGE"
REQUIRE_VARIABLE: Final = "CLAWBUS_REQUIRE_DOCKER"

ROOT: Final = Path(__file__).parents[1]
SLOW: Final = frozenset({"faults", "hostile", "integration", "simulation", "wrecks"})

# Where temporary folders lie in memory, and what must be free there: a whole run needs less than half of it.
MEMORY: Final = Path("/dev/shm")
ROOM: Final = 2 << 30

# One question to Docker per run and per image: None says "there", a text says what is missing.
_MISSING: Final[pytest.StashKey[dict[str, str | None]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary folders in memory where that is possible: on a disk, the tests mostly wait for SQLite's fsync.

    PYTEST_DEBUG_TEMPROOT is pytest's own variable; a value that is already set stays, and so does `--basetemp`.
    """
    # No test depends on the machine's speed: a busy one generates its examples slowly.
    settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any-machine")
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and _fits(MEMORY):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and config.option.basetemp is not None:
        # `g1` in place of `popen-gw1`: the name of a Unix socket in a test's folder has at most 107 bytes.
        config.option.basetemp = str(Path(config.option.basetemp).with_name(worker.removeprefix("g").replace("w", "g")))


def _fits(folder: Path) -> bool:
    """Whether tests can write to the folder, run programs from it, and have room there."""
    try:
        volume = os.statvfs(folder)
    except OSError:
        return False
    refused = volume.f_flag & (os.ST_RDONLY | os.ST_NOEXEC)
    return not refused and os.access(folder, os.W_OK | os.X_OK) and volume.f_bavail * volume.f_frsize >= ROOM


def pytest_sessionstart() -> None:
    """A shell's background job has Ctrl-C ignored, and so would every child that a test sends one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests first, so that no worker is left alone with one at the end."""
    items.sort(key=_rank)


def _needs_docker(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("docker", "systemd"))


def _rank(item: pytest.Item) -> int:
    """Docker's tests, then those that wait for real processes, then the others. The sort keeps the order within each."""
    if _needs_docker(item):
        return 0
    return 1 if item.path.relative_to(ROOT).parts[1] in SLOW else 2


def pytest_collection_finish() -> None:
    """Thousands of collected tests are no garbage; each full collection would walk them."""
    gc.collect()
    gc.freeze()


def _plain_events() -> None:
    """Whatever a test before left: events are drawn as plain text. In colour, their tracebacks were a tenth of the run."""
    drawn = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, drawn])


def base_image_name() -> str:
    return os.environ.get(BASE_IMAGE_VARIABLE) or "base-debian:bookworm"


def systemd_image_name() -> str:
    return os.environ.get(SYSTEMD_IMAGE_VARIABLE) or "base-systemd:bookworm"


def _ask_docker(image: str) -> str | None:
    try:
        client = docker.from_env(timeout=10)
        try:
            client.ping()
            client.images.get(image)
        finally:
            client.close()
    except ImageNotFound:
        return f"the image {image} is missing; `.ci/base-images` makes it"
    except (DockerException, RequestException, OSError) as error:
        return f"Docker does not answer ({error}); `.ci/docker-up` starts it"
    return None


def _missing(config: pytest.Config, image: str) -> str | None:
    answers = config.stash.setdefault(_MISSING, {})
    if image not in answers:
        # When nothing listens, docker-py leaves its socket to the garbage collector: no test's fault.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            answers[image] = _ask_docker(image)
            gc.collect()
    return answers[image]


def _need(config: pytest.Config, image: str) -> None:
    reason = _missing(config, image)
    if reason is None:
        return
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{REQUIRE_VARIABLE}=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _plain_events()
    if item.get_closest_marker("docker") is not None:
        _need(item.config, base_image_name())
    if item.get_closest_marker("systemd") is not None:
        _need(item.config, systemd_image_name())


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A Docker test's folder stays on the disk: an engine with its own mounts may not see this machine's /dev/shm."""
    if request.node.get_closest_marker("docker") is None:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="cb", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The daemon and the runner run on asyncio; so do the tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def base_image(pytestconfig: pytest.Config) -> str:
    """A local image with Python and sqlite3 that the runner's image can be built on."""
    image = base_image_name()
    _need(pytestconfig, image)
    return image


@pytest.fixture(scope="session")
def systemd_image(pytestconfig: pytest.Config) -> str:
    """A local image that boots a real systemd."""
    image = systemd_image_name()
    _need(pytestconfig, image)
    return image
