"""Takes what an agent sends during one turn: updates as progress and as the answer, and its requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import anyio

from container_runner.providers.acp.permissions import (
    Policy,
    chosen,
    is_allowed,
    named,
    permission_question,
    policy_for,
)
from container_runner.providers.acp.reply import Reply
from container_runner.providers.acp.rpc import METHOD_NOT_FOUND, Params, RpcError
from container_runner.providers.acp.usage import Meter
from container_runner.providers.protocol import Progress
from container_runner.shared.errors import AnswerTooLargeError, TurnStoppedError
from schema.json_text import whole_text
from schema.questions import Outcome, QuestionError
from schema.tools import SERVER, TOOLS

# Tools do not say how long they take. The host's own limits apply besides.
_TOOL_S: Final = 1800.0
_TOUCH_EVERY_S: Final = 1.0  # each touch of the heartbeat is an event for the host, so do not touch it more often
_MAX_KINDS: Final = 1000
_SHOWN: Final = 200
_OWN_TOOLS: Final = frozenset(f"mcp__{SERVER}__{tool}" for tool in TOOLS)


class Listener:
    """Receives what an agent sends during one turn.

    What it sends before `begin` or after the turn belongs to no answer and is dropped.
    """

    def __init__(self, progress: Progress, policies: Mapping[str, Policy], meter: Meter) -> None:
        self._progress = progress
        self._policies = policies
        self._meter = meter
        self._session_id = ""
        self._reply: Reply | None = None
        self._shown: str | None = None
        self._touched_at = float("-inf")
        self._kinds: dict[str, str] = {}
        self.latest_at = float("-inf")  # when the last update came, on the event loop's clock
        self.mode: str | None = None  # the mode that the agent changed to by itself
        self.ended = anyio.Event()  # the prompt has ended, or must be ended
        self.failure: AnswerTooLargeError | TurnStoppedError | None = None
        self.waiting = 0  # open questions: the turn's clock is stopped while there are any

    @property
    def begun(self) -> bool:
        """Whether a prompt has been sent."""
        return self._reply is not None

    def begin(self, session_id: str, reply: Reply) -> None:
        """Collect this session's updates into `reply` from now on."""
        self._session_id, self._reply, self.ended = session_id, reply, anyio.Event()

    def stop(self, why: TurnStoppedError) -> None:
        """End the prompt under way for this reason, unless it has ended or failed already."""
        if self.failure is None and not self.ended.is_set():
            self.failure = why
            self.ended.set()

    def progressed(self) -> None:
        """Count a response as progress."""
        self._touch()

    async def notified(self, method: str, params: Params) -> None:
        """Take an update as progress, and as a part of the answer if it is one. Ignore other notifications."""
        if method != "session/update":
            return
        self.latest_at = anyio.current_time()
        self._touch()
        update = _mapping(params.get("update"))
        self._note_mode(update)
        self._note_kind(update)
        if self._reply is None or params.get("sessionId") != self._session_id or self.failure is not None:
            return
        self._meter.update(update)
        try:
            self._reply.update(update)
        except AnswerTooLargeError as error:
            self.failure = error
            self.ended.set()
        self._progress.tool_calls(self._reply.tools)
        await self._show_tool(self._reply.tool)

    async def asked(self, method: str, params: Params) -> object:
        """Answer a permission request. Refuse any other request: the agent has its container's files and programs."""
        self._touch()
        if method == "session/request_permission":
            return await self._permission(params)
        raise RpcError(METHOD_NOT_FOUND, f"clawbus does not offer {method[:_SHOWN]}")

    async def _permission(self, params: Params) -> object:
        call = _mapping(params.get("toolCall"))
        kind = call.get("kind") or self._kinds.get(str(call.get("toolCallId")), "other")
        kind = kind if isinstance(kind, str) else "other"
        policy = policy_for(kind, self._policies)
        # Our own tools are allowed by `tools`. The whole title must be the name: a shell command's title is the command.
        if named(call) in _OWN_TOOLS:
            policy = Policy.ALLOW
        if policy is Policy.ASK:
            outcome, why = await self._asked_a_person(call, kind, params.get("options"))
        else:
            outcome, why = chosen(params.get("options"), allowed=policy is Policy.ALLOW), "by the agent's permissions"
        verdict = "allowed" if is_allowed(outcome, params.get("options")) else "denied"
        self._progress.wrote(f"permission {verdict}: {named(call)} ({whole_text(kind)[:_SHOWN]}): {why}")
        return outcome

    async def _asked_a_person(self, call: Params, kind: str, options: object) -> tuple[Params, str]:
        """Return the outcome that a person chose, and how it was decided. No answer in time means no."""
        try:
            question = permission_question(call, kind, options)
        except QuestionError as error:
            return chosen(options, allowed=False), f"it cannot be asked, because it {error}"
        self.waiting += 1
        try:
            decision = await self._progress.ask(question)
        finally:
            self.waiting -= 1
        if decision is None or decision.outcome is not Outcome.ANSWERED or decision.choice is None:
            how = "nobody was asked" if decision is None else f"the question ended with {decision.outcome.value}"
            return chosen(options, allowed=False), how
        outcome: Params = {"outcome": {"outcome": "selected", "optionId": decision.choice}}
        return outcome, f"answered by {decision.by or 'a person'}"

    def _touch(self) -> None:
        """Count as progress, once a second at most: an update may be a single word."""
        now = anyio.current_time()
        if now - self._touched_at >= _TOUCH_EVERY_S:
            self._touched_at = now
            self._progress.event()

    def _note_mode(self, update: Mapping[str, object]) -> None:
        mode = update.get("currentModeId")
        if update.get("sessionUpdate") == "current_mode_update" and isinstance(mode, str):
            self.mode = whole_text(mode)[:_SHOWN]

    def _note_kind(self, update: Mapping[str, object]) -> None:
        """Remember a tool call's kind: a permission request may contain only the call's id."""
        number, kind = update.get("toolCallId"), update.get("kind")
        if isinstance(number, str) and isinstance(kind, str):
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[number] = kind

    async def _show_tool(self, name: str | None) -> None:
        if name == self._shown:
            return
        self._shown = name
        if name is None:
            await self._progress.tool_ended()
        else:
            await self._progress.tool_started(name, _TOOL_S)


def _mapping(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
