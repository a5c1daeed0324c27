"""What a shell is offered, asked as its script asks: through the environment of a real process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.core.session_key import SessionKey
from daemon.store.registry import Registry
from tests.support.command_line import CommandLine
from tests.support.releases import small_release
from tests.support.session_world import SessionWorld

ID = "01M8FHSNAY52PJVXWFNW2C10N7"


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    for name in ("one", "two"):
        registry.activate(SessionKey("echo", name), 1)
        SessionWorld(home / "data" / "sessions" / "echo" / name).accept(ID if name == "one" else "m2")
    return home


def offered(line: str) -> list[str]:
    """What bash would offer for the last word of a line."""
    words = f"clawbus {line}"
    env = {**os.environ, "_CLAWBUS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    script = "import sys; from daemon.cli.main import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("sess", ["session"]),
        ("session re", ["release", "reset"]),
        ("session show ", ["echo/one", "echo/two"]),
        ("session show echo t", ["two"]),
        ("run list --session echo/t", ["echo/two"]),
        ("run list --agent e", ["echo"]),
        ("send x --agent ", ["echo"]),
        ("send x --agent echo --session o", ["one"]),
        ("send x --session echo/o", ["echo/one"]),
        ("chat --agent echo --session t", ["two"]),
        ("agent show e", ["echo"]),
        ("message show 01", [ID]),
        ("run show ", [ID, "m2"]),
        ("message retry 01", [ID]),
        ("dead drop m", ["m2"]),
        ("--config /nowhere.toml session show ", []),
        ("release link g", ["green"]),
        ("serve --slot ", ["blue", "green"]),
        ("deploy start ", []),
    ],
)
def test_a_shell_is_offered_what_fits(line: str, wanted: list[str]) -> None:
    assert offered(line) == wanted


def test_releases_are_offered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_DEPLOY__ROOT", str(folder / "opt"))
    made = small_release(folder / "opt").name
    for command in ("deploy start", "release show", "release link blue"):
        assert offered(f"{command} {made[:3]}") == [made]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_as_the_shell_wants_it(cli: CommandLine, shell: str) -> None:
    script = cli("completion", shell).result["script"]
    assert "_CLAWBUS_COMPLETE" in script
    assert cli("completion", shell, "--pretty").out == f"{script}\n"
    assert cli("completion", "csh").envelope["error"]["code"] == "USAGE"
