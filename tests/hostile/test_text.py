"""Text out of a container on its way to a terminal or a log: no control character passes, no line is forged."""

import json

import pytest

from daemon.logs_render import json_line, ordered, pretty_renderer
from daemon.printable import clean

pytestmark = pytest.mark.faults

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202e\u2066\u2028" + '\n{"event": "forged"}'
DRIVING = set("\x1b\x07\x9b\r\x00\u202e\u2066\u2028")


def test_a_line_of_json_is_one_line() -> None:
    line = json_line(ordered({"event": "container_said", "text": EVIL, "list": [EVIL], "map": {EVIL: EVIL}}))
    assert line.count(b"\n") == 1
    assert not DRIVING & set(line.decode())
    assert json.loads(line)["text"] == EVIL


@pytest.mark.parametrize("colors", [True, False])
def test_a_pretty_line_moves_no_terminal(colors: bool) -> None:
    render = pretty_renderer(colors=colors)
    plain = render(ordered({"timestamp": "", "event": "x"})).decode()
    shown = render(ordered({"timestamp": "", "event": "x", "text": EVIL, "list": [EVIL], "map": {"k": EVIL}})).decode()
    assert not (DRIVING - set(plain)) & set(shown)
    assert shown.count("\n") == 1


def test_a_tracebacks_last_line_quotes_and_does_nothing_else() -> None:
    shown = pretty_renderer(colors=False)({"timestamp": "", "event": "x", "traceback": f"ValueError: {EVIL}"}).decode()
    assert not DRIVING & set(shown)


def test_a_cell_of_a_table_is_text() -> None:
    assert not DRIVING & set(clean(EVIL))
