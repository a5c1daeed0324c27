"""Every log event and every error code is explained and listed in the pages, and none that does not exist."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schema.errors import ClawbusError
from tests.docs import log_events
from tests.docs.error_codes import BEGIN, DATA, END, OTHERS, PAGE, data, error_classes, with_table
from tests.docs.test_readme import test_every_named_command_is_one

ROOT: Final = Path(__file__).resolve().parents[2]
LEVELS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def sources() -> Iterator[ast.Module]:
    for package in ("daemon", "container_runner"):
        for file in sorted((ROOT / package).rglob("*.py")):
            yield ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def logged_events(tree: ast.AST) -> Iterator[str]:
    """First arguments of calls like `log.info("container_spawned", ...)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str(event)), *_]) if level in LEVELS:
                yield event
            case _:
                pass


def test_every_logged_event_is_told() -> None:
    logged = {event for tree in sources() for event in logged_events(tree)}
    assert len(logged) > 50, "the search for log calls has gone blind"
    assert sorted(logged - set(log_events.names())) == [], "add it to daemon/cli/log_events.toml"


def test_no_event_is_told_that_nothing_logs() -> None:
    literals = {
        node.value
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(set(log_events.names()) - literals) == []
    assert len(set(log_events.names())) == len(log_events.names())


def test_the_page_lists_every_event() -> None:
    page = log_events.PAGE.read_text(encoding="utf-8")
    assert page == log_events.with_table(page), "run: python -m tests.docs.log_events"


def test_what_is_said_about_events_is_a_sentence_and_names_commands_that_exist() -> None:
    meanings = [meaning for rows in log_events.EVENTS.values() for meaning in rows.values()]
    codes = [text for rows in OTHERS.values() for texts in rows.values() for text in texts]
    assert [one for one in meanings if one[0].islower() or one[-1] not in ".?)`"] == []
    calls = [call for one in meanings + codes for call in re.findall(r"`(clawbus [a-z][^`]*)`", one)]
    assert calls
    for call in calls:
        test_every_named_command_is_one("log_events.toml", call)


def test_event_names_are_names() -> None:
    sentences = [
        event for tree in sources() for event in logged_events(tree) if not re.fullmatch(r"[a-z][a-z0-9_.]+", event)
    ]
    assert sentences == []


def test_every_error_code_is_told() -> None:
    assert page() == with_table(page()), "run: python -m tests.docs.error_codes"
    assert DATA.read_text(encoding="utf-8") == data(), "run: python -m tests.docs.error_codes"
    table = page().partition(BEGIN)[2].partition(END)[0]
    others = {code for rows in OTHERS.values() for key in rows for code in key.split(", ")}
    assert {one.code for one in error_classes()} | others == set(re.findall(r"`([A-Z0-9_]+)`", table))


def test_every_error_says_what_to_do() -> None:
    for one in error_classes():
        assert one.__doc__, one
        assert one.default_hint.endswith((".", ")", ";")), one
        assert one is ClawbusError or "code" in vars(one) or one.code != ClawbusError.code, one


def test_one_code_means_one_thing() -> None:
    """Only a class and its own base may share a code."""
    owners: dict[str, type[ClawbusError]] = {}
    for one in sorted(error_classes(), key=lambda item: len(item.__mro__)):
        owner = owners.setdefault(one.code, one)
        assert issubclass(one, owner), f"{one.__qualname__} and {owner.__qualname__} both have {one.code}"


def test_what_to_do_about_a_code_stands_alone() -> None:
    """`clawbus help CODE` shows one code: what refers to another row of the list, or only to a page, says nothing there."""
    for codes in tomllib.loads((ROOT / "daemon/cli/explained.toml").read_text(encoding="utf-8")).values():
        for code, (_, fix) in codes.items():
            assert not re.search(r"\bthe same\b", fix), code
            assert not re.fullmatch(r"\w+ \(docs/[\w./-]+\)", fix), code
