"""Implements the tools. Each call is one transaction; a call with the same key in a later try of the turn changes nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from container_runner.shared.reply import OutFile, Reply
from container_runner.shared.sent_files import FileSource
from container_runner.tools.catalogue import CATALOGUE
from container_runner.tools.session import RunningTurn, ToolSession
from schema.errors import ClawbusError
from schema.ids import MessageLife, row_id
from schema.json_text import UnsendableError, encode, sendable
from schema.plain_names import file_names
from schema.questions import Decision, Question, QuestionError, change_request, from_fields, key_of, to_content
from schema.rows import Address, Kind
from schema.schedule_requests import CHANGE, PUT, ScheduleRequestError
from schema.schedule_requests import to_content as to_request

MAX_TEXT: Final = 100_000
MAX_HISTORY: Final = 100
MAX_EMOJI: Final = 16  # characters; a family with skin tones takes eleven
_SHOWN: Final = 4_000
_LONGEST_WAIT_S: Final = 600.0
_POLL_S: Final = 0.2
_TRIES: Final = 50
_NO_SEQ: Final = 2**63 - 1

_T = TypeVar("_T")


class ToolError(Exception):
    """A refusal that the agent reads: a code, a sentence, and what to do."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code = code
        self.fix = fix


class Calls:
    """The tools of one agent. `allowed` are the names that its configuration allows."""

    def __init__(
        self,
        session: ToolSession,
        allowed: frozenset[str],
        files: FileSource,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = session
        self._files = files
        self._allowed = allowed
        self._sleep = sleep
        self._said: Counter[tuple[MessageLife, str, str]] = Counter()
        self._claimed_at = ""
        self._tools: dict[str, Callable[[dict[str, Any]], dict[str, object]]] = {
            "send_message": self._send_message,
            "edit_message": self._edit_message,
            "ask_user": self._ask_user,
            "react": self._react,
            "request_change": self._request_change,
            "list_destinations": self._list_destinations,
            "read_history": self._read_history,
            "schedule": lambda given: self._request({**given, "type": PUT}),
            "list_schedules": self._list_schedules,
            "change_schedule": lambda given: self._request({**given, "type": CHANGE}),
        }

    def listed(self) -> list[dict[str, object]]:
        """Return the allowed tools as `tools/list` has them."""
        return [{"name": name, **CATALOGUE[name]} for name in self._tools if name in self._allowed]

    def has(self, name: str) -> bool:
        """Return whether there is such a tool, and it is allowed."""
        return name in self._allowed and name in self._tools

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, object]:
        """Carry out one call. Raise ToolError."""
        try:
            whole = cast("dict[str, Any]", sendable(arguments))
        except UnsendableError as error:
            raise ToolError("BAD_ARGUMENT", f"an argument {error}.", "Correct it and call again.") from error
        return self._tools[name](whole)

    def _send_message(self, given: dict[str, Any]) -> dict[str, object]:
        text, turn = _text(given, "text"), self._turn()
        to = given.get("to")
        address = turn.address if to is None else self._place(str(to))
        files = self._read(given.get("files"))
        content: dict[str, object] = {"text": text}
        if files:
            content["files"] = [one.name for one in files]
        return self._say(turn, address, content, given.get("key"), files)

    def _read(self, paths: object) -> tuple[OutFile, ...]:
        if paths is None or paths == []:
            return ()
        names = file_names({"files": paths})
        if not names:
            raise ToolError("BAD_ARGUMENT", "`files` must be a list of paths.", "Correct it and call again.")
        files, refused = self._insist(lambda: self._files.read(names))
        if refused:
            why = "; ".join(f"{one.path!r} {one.detail}" for one in refused)
            raise ToolError("FILE_REFUSED", f"nothing was sent: {why}.", f"Send plain files below {self._files.home}.")
        return files

    def _edit_message(self, given: dict[str, Any]) -> dict[str, object]:
        edited, text, turn = _text(given, "message"), _text(given, "text"), self._turn()
        address = self._insist(lambda: self._session.sent(edited))
        if address is None:
            raise ToolError(
                "UNKNOWN_MESSAGE", f"no message {edited[:100]!r} was sent.", "Use the id that send_message gave."
            )
        return self._say(turn, address, {"text": text, "edits": edited}, None)

    def _say(
        self,
        turn: RunningTurn,
        address: Address | None,
        content: dict[str, object],
        key: object,
        files: tuple[OutFile, ...] = (),
    ) -> dict[str, object]:
        if address is None:
            raise ToolError("NO_ROUTE", "the message has nowhere to go.", "Name a destination in `to`.")
        body = encode(sendable(content))
        said = (turn.life, address.key, body)
        self._said[said] += 1
        parts = (str(key), "") if key else (str(self._said[said]), address.key, body)
        identity = row_id("n", turn.life, "tool", *parts)
        row = Reply(
            Kind.CHAT,
            body,
            turn.life.message_id,
            address.channel_type,
            address.platform_id,
            address.thread_id,
            final=False,
            files=files,
        )
        fresh = self._insist(lambda: self._session.outbox.add(identity, row))
        return {"id": identity, "sent_before": not fresh}

    def _react(self, given: dict[str, Any]) -> dict[str, object]:
        emoji, turn = _text(given, "emoji").strip(), self._turn()
        if len(emoji) > MAX_EMOJI or any(letter.isspace() or letter.isalnum() for letter in emoji):
            raise ToolError("BAD_ARGUMENT", "`emoji` must be one emoji.", "Send text with send_message.")
        named = given.get("message")
        about = turn.life.message_id if named is None else _text(given, "message")
        address = turn.address if named is None else self._insist(lambda: self._session.place_of(about))
        if address is None:
            raise ToolError("UNKNOWN_MESSAGE", f"there is no message {about[:100]!r}.", "read_history gives the ids.")
        removed: dict[str, object] = {"removed": True} if given.get("remove") is True else {}
        return self._say(turn, address, {"text": emoji, "reaction_to": about, **removed}, None)

    def _request_change(self, given: dict[str, Any]) -> dict[str, object]:
        turn = self._turn()
        kind, what, reason = (_text(given, name) for name in ("kind", "what", "reason"))
        try:
            question = change_request(kind, what, reason)
        except QuestionError as error:
            raise ToolError("BAD_REQUEST", f"the request {error}.", "Correct it and call again.") from error
        identity = self._put(turn, question, f"c:{key_of(question)}")
        return {"question": identity, "status": "open", "next": "an admin decides; the decision comes as a message"}

    def _ask_user(self, given: dict[str, Any]) -> dict[str, object]:
        turn, wait = self._turn(), given.get("wait", True) is not False
        try:
            question = from_fields({**given, "text": given.get("question"), "notify": not wait})
        except QuestionError as error:
            raise ToolError("BAD_QUESTION", f"the question {error}.", "Correct it and ask again.") from error
        key = given.get("key")
        identity = self._put(turn, question, f"t:{key if isinstance(key, str) else key_of(question)}")
        decision = self._wait(identity, question) if wait else None
        if decision is not None:
            return {"question": identity, **decision.to_json()}
        later = (
            "call ask_user again with the same arguments to go on waiting" if wait else "the answer comes as a message"
        )
        return {"question": identity, "status": "open", "next": later}

    def _put(self, turn: RunningTurn, question: Question, key: str) -> str:
        """Write the row that asks, unless an earlier call or try has. Return the question's id."""
        identity, address = row_id("q", turn.life, key), turn.address
        row = Reply(
            Kind.SYSTEM, to_content(identity, question), turn.life.message_id, address.channel_type if address else None,
            address.platform_id if address else None, address.thread_id if address else None, final=False,
        )  # fmt: skip
        self._insist(lambda: self._session.outbox.add(identity, row))
        return identity

    def _wait(self, identity: str, question: Question) -> Decision | None:
        until = time.monotonic() + min(question.timeout_s + 30, _LONGEST_WAIT_S)
        while time.monotonic() < until:
            decision = self._insist(lambda: self._session.outbox.decision(identity))
            if decision is not None:
                return decision
            self._sleep(_POLL_S)
        return None

    def _list_destinations(self, given: dict[str, Any]) -> dict[str, object]:
        wanted = str(given.get("filter") or "").casefold()
        found = [
            {"name": one.name, "type": one.type, "display_name": one.display_name, "reachable": one.address is not None}
            for one in self._insist(self._session.places)
            if wanted in f"{one.name} {one.display_name or ''}".casefold()
        ]
        return {"destinations": found}

    def _read_history(self, given: dict[str, Any]) -> dict[str, object]:
        limit = _number(given, "limit", 20, MAX_HISTORY)
        before = _number(given, "before", _NO_SEQ, _NO_SEQ)
        rows = self._insist(lambda: self._session.history(limit, before))
        return {
            "messages": [
                {
                    "id": row["id"],
                    "seq": row["seq"],
                    "from": "agent" if row["direction"] == "out" else "user",
                    "kind": row["kind"],
                    "at": row["timestamp"],
                    "text": _words(row["content"]),
                }
                for row in rows
            ]
        }

    def _request(self, given: dict[str, Any]) -> dict[str, object]:
        """Ask the host about a schedule, and wait for the outcome."""
        turn = self._turn()
        try:
            content = to_request(given)
        except ScheduleRequestError as error:
            raise ToolError("BAD_SCHEDULE", f"the request {error}.", "Correct it and call again.") from error
        asked = (turn.life, "", content)
        self._said[asked] += 1
        identity, address = row_id("s", turn.life, str(self._said[asked]), content), turn.address
        row = Reply(
            Kind.SYSTEM, content, turn.life.message_id, address.channel_type if address else None,
            address.platform_id if address else None, address.thread_id if address else None, final=False,
        )  # fmt: skip
        self._insist(lambda: self._session.outbox.add(identity, row))
        for _ in range(_TRIES):
            outcome = self._insist(lambda: self._session.schedule_outcome(identity))
            if outcome is not None:
                return _accepted(outcome)
            self._sleep(_POLL_S)
        raise ToolError(
            "NO_OUTCOME_YET", "the host has not carried it out yet; it will.", "See list_schedules; do not ask again."
        )

    def _list_schedules(self, _: dict[str, Any]) -> dict[str, object]:
        return {"schedules": self._insist(self._session.schedules)}

    def _turn(self) -> RunningTurn:
        turn = self._insist(self._session.turn)
        if turn is None:
            raise ToolError("NO_TURN", "no turn is running.", "Use this tool while you work on a message.")
        if turn.claimed_at != self._claimed_at:  # another try, which may say the same again, lives in the same server
            self._claimed_at = turn.claimed_at
            self._said.clear()
        return turn

    def _place(self, name: str) -> Address:
        places = self._insist(self._session.places)
        found = next((one.address for one in places if one.name == name), None)
        if found is None:
            known = ", ".join(one.name for one in places if one.address is not None)[:500] or "none"
            raise ToolError("UNKNOWN_DESTINATION", f"there is no destination {name[:100]!r}.", f"There is: {known}.")
        return found

    def _insist(self, work: Callable[[], _T]) -> _T:
        """Repeat file work that fails now, for some seconds. Raise ToolError."""
        for left in reversed(range(_TRIES)):
            try:
                return work()
            except ClawbusError as error:
                if not left:
                    raise ToolError(error.code, str(error), "Nothing was done. Try again in a minute.") from error
                self._sleep(_POLL_S)
        raise AssertionError("unreachable")


def _accepted(outcome: dict[str, Any]) -> dict[str, object]:
    """Return what the host says it did. Raise ToolError for a refusal."""
    if outcome.pop("ok", False):
        return outcome
    error = outcome["error"]
    raise ToolError(str(error["code"]), str(error["message"]), str(error["fix"]))


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise ToolError(
            "BAD_ARGUMENT", f"`{name}` must be a text of 1 to {MAX_TEXT} characters.", "Correct it and call again."
        )
    return value


def _number(given: dict[str, Any], name: str, default: int, highest: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise ToolError(
            "BAD_ARGUMENT", f"`{name}` must be a whole number from 1 to {highest}.", "Correct it and call again."
        )
    return value


def _words(content: str) -> str:
    """Return a message's text, or its JSON where it has none."""
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError):
        return content[:_SHOWN]
    text = cast("dict[str, object]", value).get("text") if isinstance(value, dict) else None
    return (text if isinstance(text, str) else content)[:_SHOWN]
