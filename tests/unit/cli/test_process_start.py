"""The process before `clawbus serve` is imported: what waits, and that all of it ends."""

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Generator

import pytest

from daemon.cli import process_start


@pytest.fixture(name="as_it_was", autouse=True)
def _as_it_was() -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    gc.enable()
    gc.unfreeze()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def blocked() -> bool:
    return signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def named(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/clawbus", *words])


def test_the_daemon_collects_once_it_is_imported_and_hears_signals_once_it_has_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named(monkeypatch, "serve")
    process_start.hold()
    assert (gc.isenabled(), blocked()) == (False, True)
    process_start.release_signals()
    assert (gc.isenabled(), blocked()) == (False, False)
    process_start.collect()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("step", [process_start.hold, process_start.release, process_start.collect])
def test_another_command_is_left_alone(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    named(monkeypatch, "status")
    frozen = gc.get_freeze_count()
    step()
    assert (gc.isenabled(), blocked(), gc.get_freeze_count()) == (True, False, frozen)


def test_a_command_that_only_names_the_daemons_start_runs_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "chat", "serve")
    process_start.hold()
    process_start.release()
    assert (gc.isenabled(), blocked()) == (True, False)


@pytest.mark.parametrize(("word", "found"), [("serve", False), ("status", True)])
def test_only_the_daemons_start_imports_structlog_without_rich_and_its_reports_still_have_it(
    word: str, found: bool
) -> None:
    program = (
        f"import sys; sys.argv = ['/opt/bin/clawbus', '{word}']; import daemon.cli, structlog.dev;"
        "seen = structlog.dev.rich is not None; import rich.console; print(seen, rich.console.Console.__name__)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == [str(found), "Console"]
