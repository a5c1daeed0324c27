"""What a program's stdout means, by table."""

import pytest

from container_runner.errors import AnswerInvalidError, AnswerNotTextError
from container_runner.providers.lines import Event, OutputParser, ProgressNote, ToolEnd, ToolStart
from container_runner.providers.protocol import OutMessage


def parse(output: bytes) -> tuple[OutputParser, list[Event]]:
    parser = OutputParser()
    events = [event for line in output.split(b"\n") if (event := parser.feed(line)) is not None]
    return parser, events


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (b"hello", "hello"),
        (b"hello\n", "hello"),
        (b"two\nlines\r\n\n", "two\nlines"),
        (b"", ""),
        (b"\n  indented\n", "\n  indented"),
        (b'{"some": "json"}\n', '{"some": "json"}'),
        (b'{"type": "else"}', '{"type": "else"}'),
        (b'["type", "message"]', '["type", "message"]'),
        (b'{"type": "message"', '{"type": "message"'),
        (b'first\n{"type": "message", "text": "x"}', 'first\n{"type": "message", "text": "x"}'),
        ("grüße ☃".encode(), "grüße ☃"),
    ],
)
def test_plain_text(output: bytes, text: str) -> None:
    parser, events = parse(output)
    assert parser.answer().messages == (OutMessage(content={"text": text}),)
    assert events == []


def test_a_first_line_that_is_nested_too_deep_is_refused_and_not_sent_as_text() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(AnswerInvalidError, match="Line 1"):
        parse(b'{"type": "message", "content": {"x": ' + deep + b"}}")
    parser, _ = parse(deep)  # it never claimed to be a line of ours
    assert parser.answer().messages == (OutMessage(content={"text": deep.decode()}),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"type":"message","text":"x"}', OutMessage({"text": "x"})),
        (b'\n\n{"type":"message","text":"x"}\n\n', OutMessage({"text": "x"})),
        (b'{"type":"message","content":{"card":1}}', OutMessage({"card": 1})),
        (b'{"type":"message","content":"x"}', OutMessage({"text": "x"})),
        (
            b'{"type":"message","text":"x","to":"ops","thread_id":"t","kind":"task","deliver_after":"1970-01-01T00:00:01Z"}',
            OutMessage({"text": "x"}, to="ops", thread_id="t", deliver_after=1000, kind="task"),
        ),
    ],
)
def test_a_message_line(line: bytes, message: OutMessage) -> None:
    assert list(parse(line)[0].answer().messages) == [message]


def test_a_rich_answer_tells_its_progress_as_it_comes() -> None:
    output = b"""{"type":"progress","note":"reading"}
{"type":"tool","name":"Bash","timeout_s":90}
{"type":"tool_end"}
{"type":"tool","name":"Fetch"}
{"type":"tool_end"}
{"type":"state","key":"thread","value":"42"}
{"type":"state","key":"old","value":null}
{"type":"invented later"}
{"type":"message","text":"done"}
"""
    parser, events = parse(output)
    assert events == [
        ProgressNote("reading"),
        ToolStart("Bash", 90.0),
        ToolEnd(),
        ToolStart("Fetch"),
        ToolEnd(),
        ProgressNote(),
        ProgressNote(),
        ProgressNote(),
    ]
    answer = parser.answer()
    assert list(answer.messages) == [OutMessage({"text": "done"})]
    assert answer.state == {"thread": "42", "old": None}
    assert parser.ignored == ["invented later"]


@pytest.mark.parametrize(
    "second",
    [
        b"plain",
        b"[1]",
        b'"text"',
        b"{}",
        b'{"type":7}',
        b'{"type":"message"}',
        b'{"type":"message","text":7}',
        b'{"type":"message","content":[1]}',
        b'{"type":"message","text":"x","to":7}',
        b'{"type":"message","text":"x","to":"\\ud800"}',
        b'{"type":"message","text":"x","deliver_after":"soon"}',
        b'{"type":"message","content":{"a":NaN}}',
        b'{"type":"tool"}',
        b'{"type":"tool","name":"x","timeout_s":0}',
        b'{"type":"tool","name":"x","timeout_s":true}',
        b'{"type":"tool","name":"x","timeout_s":1e999}',
        b'{"type":"state","key":"k"}',
        b'{"type":"state","key":"","value":"v"}',
        b'{"type":"state","key":"k","value":{}}',
        b'{"type":"state","key":"' + b"k" * 201 + b'","value":"v"}',
        b"[" * 100_000,
    ],
)
def test_a_wrong_line_is_named(second: bytes) -> None:
    parser = OutputParser()
    parser.feed(b'{"type":"progress"}')
    with pytest.raises(AnswerInvalidError, match="Line 2 "):
        parser.feed(second)


def test_an_answer_that_is_not_utf8() -> None:
    with pytest.raises(AnswerNotTextError):
        parse(b"caf\xe9")[0].answer()
    with pytest.raises(AnswerNotTextError):
        parse(b'{"type":"progress"}\n{"type":"message","text":"\xe9"}')
