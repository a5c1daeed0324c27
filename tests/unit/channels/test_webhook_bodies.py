"""What hooks take in and what is posted to chat services, by the configuration alone."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.channels.protocol import Incoming, PlaceMessage
from daemon.channels.webhook_bodies import FORMATS, encoded, operator_body
from daemon.channels.webhook_events import HookRequest, is_wanted, message_of
from daemon.channels.webhook_refusals import BodyRefusedError
from daemon.channels.webhook_settings import Hook, hook_of
from daemon.core.errors import PermanentDeliveryError
from schema.rows import Address
from tests.support.channels import outgoing

PAGE = (Path(__file__).parents[3] / "docs" / "channels.md").read_text(encoding="utf-8")
BASE = {"secret": "a long secret"}
OWN = {**BASE, "agent": "a", "session": "s"}
URL = {**OWN, "reply_url": "https://chat.example.org/x"}


def request(body: Any, event: str = "", session: str | None = None) -> HookRequest:
    payload = {"body": body}
    return HookRequest("webhook", "gh", "d1", event, {"event": event, **payload}, payload, session, None, None)


@pytest.mark.parametrize(
    ("events", "event", "body", "wanted"),
    [
        ([], "push", {}, True),
        (["push"], "push", {}, True),
        (["pull_request.opened"], "pull_request", {"action": "opened"}, True),
        (["pull_request.opened"], "pull_request", {"action": "closed"}, False),
        (["push"], "ping", {}, False),
        (["app_mention"], "", {"type": "event_callback", "event": {"type": "app_mention"}}, True),
        (["invoice.paid"], "", {"type": "invoice.paid"}, True),
        (["push"], "", [], False),
    ],
)
def test_events_are_filtered_by_kind_and_action(events: list[str], event: str, body: Any, wanted: bool) -> None:
    assert is_wanted(Hook.model_validate({**OWN, "events": events}), event, {"body": body}) is wanted


def test_a_session_s_name_may_come_from_the_body() -> None:
    hook = Hook.model_validate({**OWN, "session": "pr-{body.number|body.issue.number}"})
    made = message_of(hook, request({"issue": {"number": 7}}))
    assert isinstance(made, Incoming)
    assert made.session == "pr-7"
    for body in ({"zen": "Design for failure."}, {"number": 1.5}, {"number": {"a": 1}}):
        with pytest.raises(BodyRefusedError) as refused:
            message_of(hook, request(body))
        assert "UTF-8" not in (refused.value.hint or ""), "the JSON is right"


def test_without_an_agent_a_request_is_an_event_of_a_place() -> None:
    hook = Hook.model_validate({**BASE, "place": "{body.repo}", "sender": "{body.who}", "thread": "{body.n}"})
    made = message_of(hook, request({"repo": "acme/shop", "who": "octocat", "comment": {"body": "@bot go"}}))
    assert isinstance(made, PlaceMessage)
    assert (made.event.place, made.event.sender, made.event.thread, made.event.text) == (
        "gh:acme/shop",
        "octocat",
        None,
        "@bot go",
    )
    assert made.address == Address("webhook", "gh:acme/shop")
    assert hook_of("gh:acme/shop") == hook_of("gh") == "gh"


@pytest.mark.parametrize(
    ("template", "one", "other"),
    [
        ("{body.who}", {"who": "ann"}, {"who": "ann "}),
        ("{body.who}", {"who": "ann"}, {"who": "ann\n"}),
        ("{body.who}", {"who": "ann"}, {"who": "\u00a0ann"}),
        ("{body.team}:{body.who}", {"team": "a", "who": "b:c"}, {"team": "a:b", "who": "c"}),
        ("{body.team}/{body.who}", {"team": "a", "who": "b"}, {"team": "a/b", "who": ""}),
        ("{body.team}{body.who}", {"team": "ab", "who": "%2F"}, {"team": "ab", "who": "/"}),
    ],
)
def test_nobody_becomes_somebody_else_by_what_is_in_his_name(template: str, one: Any, other: Any) -> None:
    hook = Hook.model_validate({**BASE, "sender": template})
    made = [message_of(hook, request(body)) for body in (one, other)]
    senders = [message.event.sender for message in made if isinstance(message, PlaceMessage)]
    assert senders[0] not in (None, senders[1])


@pytest.mark.parametrize(
    "keys",
    [
        {"agent": "a"}, {**OWN, "place": "x"}, {**OWN, "session": "{nothing}"}, {**OWN, "session": "a~{body.n}"},
        {**BASE, "sender": "{user}"}, {**OWN, "events": ["a b"]}, {**URL, "reply_format": "body"}, {**URL},
        {**OWN, "reply_format": "slack"}, {**URL, "reply_format": "body", "reply_body": {"t": "{secret}"}},
        {**URL, "reply_format": "body", "reply_body": {"t": "{"}},
        {**URL, "reply_format": "slack", "reply_body": {"t": "x"}},
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Hook.model_validate(keys)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slack", {"text": "a &lt;!channel&gt; &amp; b", "thread_ts": "t"}),
        ("discord", {"content": "a <!channel> & b", "allowed_mentions": {"parse": []}}),
    ],
)
def test_a_service_gets_what_it_takes(name: str, expected: object) -> None:
    message = outgoing(content='{"text":"a <!channel> & b"}', address=Address("webhook", "gh", "t"))
    assert FORMATS[name](message) == expected


def test_teams_gets_a_card() -> None:
    made: Any = FORMATS["teams"](outgoing())
    assert made["attachments"][0]["content"]["body"][0]["text"] == "hello"


def said_by(form: str, text: str) -> str:
    made: Any = FORMATS[form](outgoing(content=json.dumps({"text": text})))
    if form == "teams":
        return str(made["attachments"][0]["content"]["body"][0]["text"])
    return str(made["content" if form == "discord" else "text"])


@pytest.mark.parametrize(
    ("form", "char", "fits"),
    [
        ("discord", "x", 2_000),
        ("slack", "x", 40_000),
        ("slack", "<", 10_000),
        ("teams", "x", 13_000),
        ("teams", "\n", 6_500),
        ("teams", "\U0001f600", 6_500),
    ],
)
def test_a_long_text_is_cut_where_the_service_takes_no_more_and_says_so(form: str, char: str, fits: int) -> None:
    whole, cut = said_by(form, char * fits), said_by(form, char * (fits + 1))
    assert "[cut:" not in whole
    assert cut.endswith(f"[cut: {fits + 1} characters; the whole answer is {outgoing().message_out_id}]")
    assert fits * 0.95 < cut.count(char.replace("<", "&lt;")) < fits


def test_what_is_posted_to_teams_is_below_its_28_kb_however_it_counts() -> None:
    for text in ("x" * 50_000, '"' * 50_000, "\U0001f600" * 50_000):
        body = encoded(FORMATS["teams"](outgoing(content=json.dumps({"text": text})))).decode()
        assert len(body.encode("utf-16-le")) < 28_000


def test_a_body_of_the_operator_s_is_filled() -> None:
    body = {"to": ["{place}"], "msg": {"md": "*{agent}*: {text}", "id": "{content.ref}"}, "n": 1}
    assert json.loads(encoded(operator_body(body, outgoing(place="gh:x")))) == {
        "to": ["gh:x"], "msg": {"md": "*a*: hello", "id": ""}, "n": 1,
    }  # fmt: skip


def test_an_answer_that_is_no_json_fails_only_a_template_that_names_the_content() -> None:
    assert operator_body({"text": "{text}"}, outgoing(content="plain")) == {"text": "plain"}
    with pytest.raises(PermanentDeliveryError):
        operator_body({"ref": "{content.ref}"}, outgoing(content="plain"))


def test_what_is_not_json_is_refused_for_good() -> None:
    with pytest.raises(PermanentDeliveryError):
        FORMATS["clawbus"](outgoing(content="{"))


def test_the_documented_github_hook_takes_its_events_and_leaves_no_dead_letter() -> None:
    tables = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    hooks = next(one["channels"]["webhook"]["hooks"] for one in tables if "webhook" in one.get("channels", {}))
    hook = Hook.model_validate(hooks["github"])
    assert hook.reply == "none"
    for event, body, session in (
        ("pull_request", {"action": "opened", "pull_request": {"number": 7}}, "pr-7"),
        ("issue_comment", {"action": "created", "issue": {"number": 7}}, "pr-7"),
    ):
        assert is_wanted(hook, event, {"body": body})
        made = message_of(hook, request(body, event))
        assert isinstance(made, Incoming)
        assert made.session == session
    assert not is_wanted(hook, "ping", {"body": {"zen": "Design for failure."}})


@pytest.mark.parametrize("form", ["slack", "discord", "teams", "own"])
def test_a_question_shows_its_options(form: str) -> None:
    """People answer by an option's number or label: in a chat nobody saw which there are."""
    fields = {
        "type": "question", "question": "q-1", "text": "Deploy <now>?", "free_text": False,
        "options": [{"id": "y", "label": "yes"}, {"id": "n", "label": "no\n3. forged", "description": "later & safer"}],
    }  # fmt: skip
    asked = replace(outgoing(content=json.dumps(fields)), kind="system", message_out_id="q-1")
    body = operator_body({"say": "{text}"}, asked) if form == "own" else FORMATS[form](asked)
    said = json.dumps(body).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert r"Deploy <now>?\n1. yes\n2. no\\n3. forged: later & safer" in said
