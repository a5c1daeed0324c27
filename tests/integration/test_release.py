"""A release made from what is installed here, and a daemon that runs from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import CLAWBUS, RealDaemon


@pytest.fixture(name="bus", scope="module")
def _bus() -> Iterator[RealDaemon]:
    """Configured with a root for releases, and one release, made by the real command."""
    bus = RealDaemon()
    try:
        root = bus.root / "opt"
        text = bus.config.read_text(encoding="utf-8")
        bus.config.write_text(text + f'[deploy]\nroot = "{root}"\n[agents.echo]\nprovider = "echo"\n', encoding="utf-8")
        made = bus.cli("release", "make", timeout_s=120).result
        assert made["made"]
        bus.command = str(root / "releases" / made["id"] / "bin" / "clawbus")
        yield bus
    finally:
        bus.end_quietly()
        bus.close()


def test_the_same_files_are_one_release(bus: RealDaemon) -> None:
    again = bus.cli("release", "make", timeout_s=120).result
    assert not again["made"]
    assert [one["id"] for one in bus.cli("release", "list").result["releases"]] == [again["id"]]


def test_a_start_from_outside_is_refused_with_78_and_nothing_is_made(bus: RealDaemon) -> None:
    inside, bus.command = bus.command, CLAWBUS
    try:
        said = bus.refused()
    finally:
        bus.command = inside
    assert (said.code, said.error) == (78, "SOURCE_OUTSIDE_RELEASE")
    assert not bus.data.exists()


def test_the_daemon_of_a_release_serves_reports_itself_and_a_changed_file_is_named(bus: RealDaemon) -> None:
    release = Path(bus.command).parents[1]
    bus.start()
    try:
        assert bus.ask("hello", agent="echo", session="first")["text"] == "hello"
        assert bus.status()["live"]["source"]["prefix"] == str(release)
        assert bus.cli("source").result["drift"] == []
        link = bus.root / "opt" / "slots" / "blue"
        link.parent.mkdir()
        link.symlink_to(Path("..") / "releases" / release.name)
        file = next(release.rglob("daemon/cli/version.py"))
        file.chmod(0o644)
        file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        said = bus.cli("source")
        assert (said.code, said.error) == (1, "SOURCE_DRIFT")
        (drift,) = said.envelope["result"]["drift"]
        assert drift["what"] == "files"
        assert "daemon/cli/version.py" in drift["found"]
    finally:
        bus.stop()
