"""What the pages tell people to type is real: make targets, clawbus commands, files, links, and the example agent."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from daemon.cli.main import command_tree
from daemon.config.loading import load_config

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (
    "README.md",
    "docs/install.md",
    "docs/write-an-agent.md",
    "docs/operating.md",
    "docs/findings.md",
    "docs/reference.md",
    "docs/backup.md",
    "docs/monitoring.md",
    "docs/log-events.md",
    "docs/agents.md",
    "docs/egress.md",
    "docs/routing.md",
    "docs/schedules.md",
    "docs/deploys.md",
    "docs/inngest.md",
)
LINKED: Final = (
    "README.md",
    "ARCHITECTURE.md",
    *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))),
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str


def blocks(page: str, language: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(page, name, body) for name, body in found if name == language]


def shell_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.text.splitlines():
                if command := re.sub(r"(^|\s+)#.*", "", line).strip():
                    yield page, command


def typed_calls() -> Iterator[tuple[str, str]]:
    """Every clawbus command of the shell blocks."""
    for page, line in shell_lines():
        for part in re.split(r"&&|\|\||;|\|", re.sub(r">\s*\S+", "", line)):
            words = part.split()
            if any(word.rpartition("/")[2] == "clawbus" for word in words[:4]) and "daemon-reload" not in words:
                # The last of them: `sudo -u clawbus /opt/clawbus/bin/clawbus status` names the user before.
                start = max(index for index, word in enumerate(words[:4]) if word.rpartition("/")[2] == "clawbus")
                if start == 0 or (words[0] == "sudo" and words[start - 1] != "-u"):
                    yield page, " ".join(["clawbus", *words[start + 1 :]])


def named_calls() -> Iterator[tuple[str, str]]:
    """Every clawbus command in running text, where it may also be named without its arguments."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for call in re.findall(r"`(clawbus [a-z][^`]*)`", prose):
            yield page, " ".join(call.split())


def parse(arguments: Sequence[str]) -> None:
    """Let the live command tree read the arguments, without running anything. Raises what a user would see."""
    command: Any = command_tree()
    context = command.make_context("clawbus", list(arguments))
    while hasattr(command, "resolve_command"):
        given = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, given)
        if command is None:
            raise AssertionError(f"no such command: {given}")
        context = command.make_context(name, rest, parent=context)


TYPED: Final = tuple(dict.fromkeys(typed_calls()))
NAMED: Final = tuple(dict.fromkeys(named_calls()))


def test_there_are_commands_to_check() -> None:
    assert len([call for page, call in TYPED if page == "README.md"]) >= 10
    assert len([call for page, call in TYPED if page == "docs/install.md"]) >= 5
    assert len(NAMED) >= 5


@pytest.mark.parametrize(("page", "call"), TYPED)
def test_every_typed_command_is_one(page: str, call: str) -> None:
    parse(shlex.split(call)[1:])


@pytest.mark.parametrize(("page", "call"), NAMED)
def test_every_named_command_is_one(page: str, call: str) -> None:
    words = shlex.split(call)[1:]
    if words[-1] == "--help":
        return
    try:
        parse(words)
    except typer.TyperException as error:
        # Named without its arguments is named; anything else that is wrong with it is not.
        if type(error).__name__ != "MissingParameter":
            raise


@pytest.mark.parametrize(
    "wrong", ["clawbus sned x --agent a --session s", "clawbus send x --agnet a", "clawbus session shw a s"]
)
def test_a_wrong_command_is_seen(wrong: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing") as caught:
        parse(shlex.split(wrong)[1:])
    assert caught.type.__module__.startswith("typer.")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_every_make_target_is_one() -> None:
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.MULTILINE))
    assert {"demo", "test", "clawbus"} <= named <= make_targets()


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            missing.append(link)
    assert missing == []


def test_the_page_for_the_night_stays_one_page() -> None:
    """Whoever is woken reads it from top to bottom; tables of everything belong into the pages beside it."""
    assert len((ROOT / "docs/operating.md").read_text(encoding="utf-8").split()) <= 1200


def test_every_file_that_is_installed_is_there() -> None:
    words = [word for page, line in shell_lines() if page == "docs/install.md" for word in line.split()]
    files = [word for word in words if re.match(r"(systemd|locks)/", word)]
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_example_agent_works(tmp_path: Path) -> None:
    (python,) = blocks("README.md", "python")
    notice = {"type": "delivery_failed", "message_out_id": "o1", "code": "NO_ROUTE"}
    turn = {
        "messages": [
            {"kind": "system", "trigger": False, "content": notice},
            {"kind": "chat", "trigger": False, "content": {"text": "somebody else said"}},
            {"kind": "chat", "trigger": True, "content": {"text": "make it"}},
            {"kind": "chat", "trigger": True, "content": {"text": "loud"}},
        ]
    }
    command = [sys.executable, "-I", "-c", python.text]
    done = subprocess.run(
        command, input=json.dumps(turn), capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    assert done.stdout == "MAKE IT LOUD\n"


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    (toml,) = blocks("README.md", "toml")
    (name,) = tomllib.loads(toml.text)["agents"]
    (tmp_path / "clawbus.toml").write_text(toml.text, encoding="utf-8")
    assert load_config(tmp_path / "clawbus.toml").agents[name].command == ("python3", "shout.py")
    assert f"agents/{name}/shout.py" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_how_the_demo_ends() -> None:
    _, _, after = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- demo-output -->")
    shown = after.partition("```text\n")[2].partition("```")[0].splitlines()
    assert re.fullmatch(r"demo: (\d+) accepted, \1 answered, 0 lost", shown[-1])
