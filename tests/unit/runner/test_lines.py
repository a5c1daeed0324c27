"""What a program's stdout means, by table."""

import pytest

from container_runner.providers.lines import Event, Later, OutputParser, ProgressNote, SayNow, ToolEnd, ToolStart
from container_runner.providers.protocol import OutMessage
from container_runner.shared.errors import AnswerInvalidError, AnswerNotTextError


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
        b'{"type":"message","text":"x","deliver_after":"soon"}',
        b'{"type":"message","content":{"a":NaN}}',
        b'{"type":"tool"}',
        b'{"type":"tool","name":"x","timeout_s":0}',
        b'{"type":"tool","name":"x","timeout_s":true}',
        b'{"type":"tool","name":"x","timeout_s":1e999}',
        b'{"type":"state","key":"k"}',
        b'{"type":"later","after_s":-1}',
        b'{"type":"later","after_s":"30"}',
        b'{"type":"later","after_s":true}',
        b'{"type":"later","after_s":1e999}',
        b'{"type":"later","reason":7}',
        b'{"type":"state","key":"","value":"v"}',
        b'{"type":"state","key":"k","value":{}}',
        b'{"type":"state","key":"' + b"k" * 201 + b'","value":"v"}',
        b"[" * 100_000,
        b'{"type":"message","text":"x","content":"y"}',
        b'{"type":"message","content":{"n":1e999}}',
        b'{"type":"message","content":{"n":-1e999}}',
        b'{"type":"message","content":{"n":' + b"9" * 400 + b"}}",
        b'{"type":"message","content":{"n":' + b"9" * 5000 + b"}}",
        b'{"type":"message","content":{"n":' + b"[" * 101 + b"]" * 101 + b"}}",
        b'{"type":"message","content":{"\\ud800":1,"\\ud801":2}}',
        b'{"type":"message","text":"unfinished',
    ],
)
@pytest.mark.parametrize(
    ("mode", "first"), [("auto", b'{"type":"message","text":"first"}'), ("lines", b'{"type":"progress"}')]
)
def test_a_wrong_line_is_named(mode: str, first: bytes, second: bytes) -> None:
    parser = OutputParser(mode)
    parser.feed(first)
    with pytest.raises(AnswerInvalidError, match="Line 2 "):
        parser.feed(second)


@pytest.mark.parametrize("output", [b"plain", b"[1]", b"{}", b'{"type":7}', b'{"type":"message"', b""])
def test_with_output_lines_every_line_must_be_one(output: bytes) -> None:
    parser = OutputParser("lines")
    if output:
        with pytest.raises(AnswerInvalidError, match="Line 1 "):
            parser.feed(output)
    else:
        assert parser.answer().messages == ()


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"progress","note":"half way"}',
        b'{"type":"state","key":"k","value":"v"}',
        b'{"type":"tool","name":"hammer"}',
        b'{"type":"message","text":"x","amount":3}',
        b'{"type":"later"}',
        b'{"type":"progress"}\nand more',
    ],
)
def test_with_output_text_what_happens_to_be_json_reaches_the_person(text: bytes) -> None:
    parser = OutputParser("text")
    assert [parser.feed(line) for line in text.split(b"\n")] == [None] * (text.count(b"\n") + 1)
    assert parser.answer().messages == (OutMessage({"text": text.decode()}),)
    assert parser.later is None


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (b'{"type":"progress"}\nthe answer\n', "the answer"),
        (b'\n{"type":"progress"}\n\n{"type":"tool_end"}\nthe answer\n\nin two parts', "the answer\n\nin two parts"),
        (b'{"type":"progress"}\n{"amount": 3}', '{"amount": 3}'),
        (b'{"type":"progress"}\n[1, 2]', "[1, 2]"),
        (b'{"type":"progress"}\ntext\n{"type":"message","text":"x"}', 'text\n{"type":"message","text":"x"}'),
    ],
)
def test_a_text_may_follow_lines_that_only_tell_of_progress(output: bytes, text: str) -> None:
    parser, events = parse(b'{"type":"state","key":"k","value":"v"}\n' + output)
    assert events
    answer = parser.answer()
    assert list(answer.messages) == [OutMessage({"text": text})]
    assert answer.state == {"k": "v"}
    assert answer.note is None


@pytest.mark.parametrize("mode", ["auto", "lines"])
def test_an_answer_that_sends_nothing_says_so(mode: str) -> None:
    parser = OutputParser(mode)
    for line in (b'{"type":"progress"}', b'{"type":"progress"}', b'{"type":"unknown"}'):
        parser.feed(line)
    answer = parser.answer()
    assert answer.messages == ()
    assert answer.ignored == ("unknown",)
    assert answer.note is not None
    assert answer.note.code == "NOTHING_SENT"
    assert "2 progress; ignored: unknown" in answer.note.message


def test_progress_costs_nothing_of_the_answer_s_budget() -> None:
    parser, _ = parse(b'{"type":"progress","note":"' + b"x" * 10_000 + b'"}\n' + b'{"type":"message","text":"x"}')
    assert parser.held == len(b'{"type":"message","text":"x"}')


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"type":"message","text":"paid \\ud83d"}', OutMessage({"text": "paid \ufffd"})),
        (b'{"type":"message","content":{"a":["\\udc00b"]}}', OutMessage({"a": ["\ufffdb"]})),
        (b'{"type":"message","content":{"k\\ud83d":1}}', OutMessage({"k\ufffd": 1})),
        (b'{"type":"message","text":"x","to":"\\ud800"}', OutMessage({"text": "x"}, to="\ufffd")),
        (b'{"type":"message","text":"whole \\ud83d\\ude00"}', OutMessage({"text": "whole \U0001f600"})),
    ],
)
def test_half_a_character_becomes_the_replacement_character_wherever_it_is(line: bytes, message: OutMessage) -> None:
    assert list(parse(line)[0].answer().messages) == [message]


def test_a_message_line_keeps_what_it_says_beside_its_text() -> None:
    line = b'{"type":"message","text":"3 invoices","amount":3,"to":"ops","items":[1]}'
    assert list(parse(line)[0].answer().messages) == [
        OutMessage({"text": "3 invoices", "amount": 3, "items": [1]}, to="ops")
    ]
    line = b'{"type":"message","text":"3","content":{"card":1},"extra":true}'
    assert list(parse(line)[0].answer().messages) == [OutMessage({"text": "3", "extra": True, "card": 1})]


def test_an_answer_that_is_not_utf8() -> None:
    with pytest.raises(AnswerNotTextError):
        parse(b"caf\xe9")[0].answer()
    with pytest.raises(AnswerNotTextError):
        parse(b'{"type":"progress"}\n{"type":"message","text":"\xe9"}')


@pytest.mark.parametrize(
    ("line", "later"),
    [
        (b'{"type":"later"}', Later()),
        (b'{"type":"later","after_s":0}', Later(0.0)),
        (b'{"type":"later","after_s":30.5,"reason":"429"}', Later(30.5, "429")),
        (b'{"type":"progress"}', None),
    ],
)
def test_a_program_may_ask_for_later(line: bytes, later: Later | None) -> None:
    parser = OutputParser("auto")
    parser.feed(line)
    assert parser.later == later


def test_a_line_about_a_schedule_is_a_request_to_the_host_and_no_part_of_the_answer() -> None:
    lines = (
        b'{"type":"schedule","key":"k","text":"go","every_s":60}\n{"type":"change_schedule","key":"k","action":"pause"}'
    )
    parser, events = parse(lines)
    assert [event.message.kind for event in events if isinstance(event, SayNow)] == ["system", "system"]
    assert parser.answer().messages == ()
    for wrong in (b'{"type":"schedule","key":"k"}', b'{"type":"change_schedule","key":"k","action":"x"}'):
        with pytest.raises(AnswerInvalidError, match="Line 1"):
            parse(wrong)


@pytest.mark.parametrize(
    "fields",
    ['"kind":"reminder"', '"thread_id":"a\\u0000b"', f'"thread_id":"{"x" * 1001}"'],
    ids=["kind", "NUL", "long"],
)
def test_what_the_host_could_not_deliver_is_refused_before_it_is_committed(fields: str) -> None:
    for now in ("", ',"now":true'):
        with pytest.raises(AnswerInvalidError, match="Line 1"):
            parse(f'{{"type":"message","text":"x",{fields}{now}}}'.encode())
