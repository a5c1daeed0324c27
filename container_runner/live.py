"""The state of a running turn: its progress reports, and the messages that have arrived since it began. Decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import anyio

from container_runner.asking import Ask
from container_runner.heartbeat import Heartbeat
from container_runner.providers.protocol import DeclaredTimeout, OutMessage, TurnMessage
from container_runner.saying import Say
from container_runner.tool_times import ToolTimes
from container_runner.words import PROGRESS, STDERR
from schema.questions import TOOL, Decision, Question

SetTool = Callable[[DeclaredTimeout | None, int], Awaitable[None]]


@dataclass(slots=True)
class FollowUps:
    """Messages that were claimed after the turn began. The loop pushes them; the provider takes them, or they are released."""

    waiting: list[TurnMessage] = field(default_factory=list[TurnMessage])
    taken: list[TurnMessage] = field(default_factory=list[TurnMessage])
    _arrived: anyio.Event = field(default_factory=anyio.Event)

    def push(self, messages: tuple[TurnMessage, ...]) -> None:
        """Add claimed messages. From here on they must be acked or released with the turn."""
        self.waiting.extend(messages)
        self._arrived.set()

    async def take(self) -> tuple[TurnMessage, ...]:
        """Wait for messages and return them. The returned messages belong to the turn."""
        while not self.waiting:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        taken = tuple(self.waiting)
        self.taken.extend(taken)
        self.waiting.clear()
        return taken


class TurnProgress:
    """The Progress that a provider is given. `silence` is what it declared for the whole turn; `said` takes its program's output."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        set_tool: SetTool,
        now_ms: Callable[[], int],
        silence: DeclaredTimeout | None,
        said: Callable[[str, str], None],
        ask: Ask,
        say: Say,
    ) -> None:
        self.follow_ups_inbox = FollowUps()
        self.tools = ToolTimes(now_ms)
        self._heartbeat = heartbeat
        self._set_tool = set_tool
        self._now_ms = now_ms
        self._silence = silence
        self._said = said
        self._began_at = now_ms()
        self._ask = ask
        self._say = say
        self._tool = silence, self._began_at  # what is declared now
        self._open_questions = 0
        self._stop = anyio.Event()

    def stop(self) -> None:
        """Tell the provider to stop the turn. Calling it again has no effect."""
        self._stop.set()

    async def stop_asked(self) -> None:
        """Wait until the turn is to be stopped."""
        await self._stop.wait()

    def event(self) -> None:
        """Touch the heartbeat."""
        self._heartbeat.touch()

    def note(self, text: str) -> None:
        """Touch the heartbeat, and keep the text."""
        self._heartbeat.touch()
        self._said(PROGRESS, text)

    def wrote(self, line: str) -> None:
        """Keep the line for the operator."""
        self._said(STDERR, line)

    async def tool_started(self, name: str, timeout_s: float | None = None) -> None:
        """Record the tool in container_state."""
        self._heartbeat.touch()
        self.tools.one(name)
        if timeout_s is None and self._silence is not None:
            # It may take the rest of the turn's timeout, so its start is the turn's start.
            await self._declare(DeclaredTimeout(name, self._silence.timeout_s), self._began_at)
        else:
            await self._declare(DeclaredTimeout(name, timeout_s), self._now_ms())

    async def tool_ended(self) -> None:
        """Record again what the provider declared for the whole turn."""
        self._heartbeat.touch()
        self.tools.one(None)
        await self._declare(self._silence, self._began_at)

    def tool_calls(self, calls: Mapping[str, str]) -> None:
        """Time the calls."""
        self.tools.several(calls)

    async def say(self, message: OutMessage, key: str | None = None) -> str:
        """Store the message, to be sent at once."""
        self._heartbeat.touch()
        return await self._say(message, key)

    async def ask(self, question: Question, key: str | None = None) -> Decision | None:
        """Ask, and declare the silence until the answer comes."""
        self._heartbeat.touch()
        if question.notify:
            return await self._ask(question, key)
        self._open_questions += 1
        await self._set_tool(DeclaredTimeout(TOOL, question.timeout_s), self._now_ms())
        try:
            decision = await self._ask(question, key)
        finally:
            self._open_questions -= 1
        self._heartbeat.touch()
        if not self._open_questions:
            await self._set_tool(*self._tool)
        return decision

    async def _declare(self, tool: DeclaredTimeout | None, started_at: int) -> None:
        self._tool = tool, started_at
        if not self._open_questions:
            await self._set_tool(tool, started_at)

    async def follow_ups(self) -> tuple[TurnMessage, ...]:
        """Wait for more messages."""
        return await self.follow_ups_inbox.take()
