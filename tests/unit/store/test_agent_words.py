"""What an agent said besides its answers, as the runner keeps it and as the host reads it: a hostile file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from container_runner.words import PROGRESS, STDERR, Words
from daemon.store.agent_words import AgentWords, agent_words
from schema.layout import WORDS, WORDS_BEFORE, SessionFolder

NOW = 1_763_000_000_000
LOG: Any = structlog.wrap_logger(structlog.ReturnLogger())


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    made = SessionFolder(tmp_path)
    made.outbox.mkdir()
    return made


def test_what_the_runner_keeps_is_what_the_host_shows(folder: SessionFolder) -> None:
    words = Words(folder.outbox, "I1", lambda: NOW)
    words.keep(LOG, ["m1", "m2"], PROGRESS, "thinking")
    words.keep(LOG, ["m3"], STDERR, "Traceback:\tboom \udcff\x1b[31m")
    words.keep(LOG, ["m3"], PROGRESS, "  ")
    assert agent_words(folder, "m2") == [AgentWords(NOW, ("m1", "m2"), "progress", "thinking")]
    (last,) = agent_words(folder)
    assert (last.messages, last.kind) == (("m3",), "stderr")
    assert "boom" in last.text
    assert last.text.isprintable()
    assert [one.messages for one in agent_words(folder, limit=10)] == [("m1", "m2"), ("m3",)]


def test_a_flood_is_bounded_in_rate_and_size_and_the_newest_are_kept(folder: SessionFolder) -> None:
    now = [NOW]
    words = Words(folder.outbox, "I1", lambda: now[0])
    for number in range(1000):
        words.keep(LOG, ["m1"], PROGRESS, f"{number} " + "x" * 5000)
    at_once = (folder.outbox / WORDS).stat().st_size
    assert at_once < 100 * 1024, "what is too much at once is left out"
    for number in range(300):
        now[0] += 1000
        words.keep(LOG, ["m1"], PROGRESS, f"later {number} " + "x" * 900)
    sizes = [(folder.outbox / name).stat().st_size for name in (WORDS, WORDS_BEFORE)]
    assert max(sizes) < 100 * 1024
    assert agent_words(folder)[0].text.startswith("later 299")
    assert len(agent_words(folder, limit=1000)) <= 40, "no more than the ends of both files are read"


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path,
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "hole": hole,
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe\nnull\n[]\n{}\n" + b"[" * 9000),
    "wrong types": lambda path: path.write_text(json.dumps({"at": 1, "messages": {}, "kind": [], "text": None})),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_read_as_nothing_and_stops_no_turn(folder: SessionFolder, what: str) -> None:
    HOSTILE[what](folder.outbox / WORDS)
    assert agent_words(folder) == []
    Words(folder.outbox, "I1", lambda: NOW).keep(LOG, ["m1"], STDERR, "said")
    assert not os.path.lexists(folder.outbox / WORDS_BEFORE) or what == "hole"
