"""Drives an agent over the Agent Client Protocol (agentclientprotocol.com), version 1: one process per container.

The process is started with the first turn and kept over the others. Prompts are sent one at a time, because agents differ in
what they do with a second one, and two of them abort the first. The agent's session id is part of the turn's state, so it
is committed with the answer. What the agent sends between two prompts belongs to no answer and is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, TypeVar, cast

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from container_runner.providers.acp.agent import Agent, Times, in_time
from container_runner.providers.acp.errors import (
    AcpCancelledError,
    AcpDiedError,
    AcpNoSessionError,
    AcpSilentError,
    AcpTimeoutError,
)
from container_runner.providers.acp.listener import Listener
from container_runner.providers.acp.permissions import read_policies
from container_runner.providers.acp.prompt import prompt_text
from container_runner.providers.acp.reply import Reply
from container_runner.providers.acp.reply_files import ReplyFiles
from container_runner.providers.acp.rpc import NotSentError, Params
from container_runner.providers.acp.usage import Meter, tokens_of
from container_runner.providers.protocol import Answer, DeclaredTimeout, OutMessage, Progress, ProviderContext, Turn
from container_runner.shared.errors import CannotStartError, TurnFailedError, TurnStoppedError
from schema.rows import TurnNote

_Failure = TypeVar("_Failure", bound=TurnFailedError)

STATE_KEY: Final = "acp.session"
NEW_MEMORY: Final = "(The agent's memory of this conversation could not be restored. It begins with an empty one.)"
# Agents are silent while their model's service is away: 45 s were seen, and a busy machine makes it longer.
_SILENCE_S: Final = 300.0
_DRAIN_STEPS: Final = 50
_TOOLS_S: Final = 20.0
_TOOLS_STEP_S: Final = 0.05


class AcpProvider:
    """Runs one agent's process over many turns."""

    accepts_follow_ups = False

    def __init__(self, context: ProviderContext, times: Times | None = None) -> None:
        self._context = context
        self._times = times or Times()
        self._cwd = str((context.agent_folder if context.agent_folder.is_dir() else Path.cwd()).resolve())
        self._policies = read_policies(context.settings.permissions)
        self._agent: Agent | None = None
        # The id of the session opened last in this container. The state may still hold an earlier one.
        self._session_id: str | None = None
        self._unproven = False  # the session was restored, and no prompt has shown yet that it is there
        self._meter: Meter | None = None
        self._progress: Progress | None = None
        self._group: TaskGroup | None = None  # the running turn's task group
        self.silence: DeclaredTimeout | None = DeclaredTimeout("agent", _SILENCE_S)

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Send the turn as a prompt and return the answer. When cancelled, end the agent first."""
        self._progress = progress
        self._meter = self._meter or _metered(turn.state.get(STATE_KEY))
        listener = Listener(progress, self._policies, self._meter)
        answer: Answer | None = None
        failure: TurnFailedError | CannotStartError | None = None
        try:
            async with anyio.create_task_group() as self._group:
                try:
                    with anyio.CancelScope() as opening:
                        self._group.start_soon(self._heed_stop, progress, listener, opening)
                        answer = await self._answer(turn, listener)
                    if opening.cancelled_caught:
                        await self._drop()  # stopped in the middle of its start: unknown what it would do next
                        failure = TurnStoppedError("The message was cancelled before the agent got it.")
                except (TurnFailedError, CannotStartError) as error:
                    failure = error
                self._group.cancel_scope.cancel()
        finally:
            unknown = answer is None and failure is None  # cancelled: unknown what the agent does now
            if self._agent is not None and (unknown or not self._agent.alive):
                await self._drop()
        if answer is None:
            raise failure or TurnFailedError("The turn was cancelled.")
        return answer

    async def close(self) -> None:
        """End the agent."""
        await self._drop()

    async def _answer(self, turn: Turn, listener: Listener) -> Answer:
        restored = await self._ready(turn, listener)
        try:
            return await self._prompt(turn, listener, restored=restored)
        except NotSentError:  # the agent had ended before, so the message is not to blame
            await self._drop()
            restored = await self._ready(turn, listener)
        except AcpNoSessionError as error:
            restored = await self._begin_anew(error, listener)
        try:
            return await self._prompt(turn, listener, restored=restored)
        except NotSentError as error:
            raise AcpDiedError("The agent ended between its start and the prompt, twice.") from error

    async def _ready(self, turn: Turn, listener: Listener) -> bool:
        """Make sure that an agent runs with a session of ours. Return False if an earlier session could not be restored."""
        if await self._still_there(listener):
            return True
        await self._drop()
        stored = _stored(turn.state.get(STATE_KEY))
        known = stored if self._session_id is None else (self._session_id, stored[1] if stored else "")
        try:
            return await self._open(known, listener)
        except (AcpDiedError, AcpSilentError) as error:
            if known is None:
                raise
            return await self._begin_anew(error, listener)

    async def _begin_anew(self, why: TurnFailedError, listener: Listener) -> bool:
        """Open a new session: one that its agent cannot restore must not stop it forever. Return False."""
        self._log(f"the session was not restored: {why}")
        await self._drop()
        await self._open(None, listener)
        return False

    async def _still_there(self, listener: Listener) -> bool:
        """Return whether the last turn's agent lives. Drop what it sent since then, and set its mode if it changed it."""
        agent, wanted = self._agent, self._context.settings.mode
        if agent is None or not agent.alive:
            return False
        self._listen(agent, listener)
        for _ in range(_DRAIN_STEPS):  # what came since the last turn is in a buffer, so reading it takes no time
            await checkpoint()
        listener.latest_at = float("-inf")
        agent.mode = listener.mode or agent.mode
        if agent.alive and wanted and agent.mode != wanted:
            await agent.set_mode(wanted, self._times.session_s)
        return agent.alive

    async def _open(self, known: tuple[str, str] | None, listener: Listener) -> bool:
        """Start the program and open a session: `known` is the earlier one's id and its agent's name."""
        agent = self._agent = await Agent.start(self._context, self._log)
        try:
            self._listen(agent, listener)
            await agent.initialize(self._times.initialize_s)
            listener.progressed()
            same = known if known is not None and known[1] in ("", agent.name) else None
            opened = await agent.open_session(
                None if same is None else same[0], self._cwd, self._context.settings.mode, self._times.session_s
            )
            listener.progressed()
            await self._let_replay_end(listener, certain=opened.replays)
            await self._await_tools()
        except BaseException:
            await self._drop()
            raise
        if same is None or opened.session_id != same[0]:
            cast("Meter", self._meter).reset()
        self._session_id = opened.session_id
        self._unproven = same is not None and opened.restored
        return opened.restored and same == known

    def _listen(self, agent: Agent, listener: Listener) -> None:
        self._tasks().start_soon(agent.serve, listener)
        self._tasks().start_soon(agent.hear)

    async def _await_tools(self) -> None:
        """Wait until the agent has listed our tools: it may answer session/new before its servers have started."""
        tools = self._context.tools
        if tools is None:
            return
        with anyio.move_on_after(_TOOLS_S):
            while not tools.ready.exists():  # noqa: ASYNC110 -- another process makes the file
                await anyio.sleep(_TOOLS_STEP_S)
            return
        self._log(f"the agent has not listed the tools within {_TOOLS_S:g} s, so its first turn may not know them")

    async def _let_replay_end(self, listener: Listener, *, certain: bool) -> None:
        """Wait until a restored session's replay is over: some agents send a part of it after their response."""
        if not certain and listener.latest_at == float("-inf"):
            return
        since = anyio.current_time()
        with anyio.move_on_after(self._times.session_s):
            while (until := max(since, listener.latest_at) + self._times.quiet_s) > anyio.current_time():  # noqa: ASYNC110 -- silence has no event
                await anyio.sleep_until(until)
        listener.latest_at = float("-inf")

    async def _prompt(self, turn: Turn, listener: Listener, *, restored: bool) -> Answer:
        agent = cast("Agent", self._agent)
        settings = self._context.settings
        files = ReplyFiles(self._context.home, settings.max_files, settings.max_file_bytes)
        reply = Reply(settings.max_answer_bytes, files)
        listener.begin(agent.session_id, reply)
        if listener.failure is not None:  # stopped before the prompt
            raise listener.failure
        prompting = _Prompting(listener.ended)
        self._tasks().start_soon(prompting.run, agent, prompt_text(turn.messages, turn.in_folder))
        try:
            await in_time(listener.ended.wait, settings.timeout_s, lambda: listener.waiting > 0)
        except TimeoutError:
            await self._cancel(agent, prompting)
            why = AcpTimeoutError(f"{agent.name} did not end its turn within {settings.timeout_s:g} s.")
            raise prompting.failed(why) from None
        if listener.failure is not None:
            await self._cancel(agent, prompting)
            raise prompting.failed(listener.failure)
        if prompting.failure is not None:
            raise prompting.failure
        agent.mode = listener.mode or agent.mode
        stop_reason = str(prompting.response.get("stopReason"))
        if stop_reason == "cancelled":
            raise prompting.failed(AcpCancelledError(f"{agent.name} ended its turn as cancelled."))
        if self._unproven and stop_reason == "refusal" and not reply.begun and "usage" not in prompting.response:
            raise AcpNoSessionError(f"{agent.name} restored it, and refused its first prompt without a word.")
        self._unproven = False
        return self._made(agent, reply, prompting.response, restored=restored)

    def _made(self, agent: Agent, reply: Reply, response: Params, *, restored: bool) -> Answer:
        stop_reason, meter = str(response.get("stopReason")), cast("Meter", self._meter)
        text = reply.text(stop_reason)
        kept = {"session": agent.session_id, "agent": agent.name, "cost": meter.total, "currency": meter.currency}
        state, usage = {STATE_KEY: json.dumps(kept)}, meter.turn(response)
        ignored = tuple(dict.fromkeys(reply.left_out))
        files = reply.files
        if not text and not files.links and not files.embedded:
            note = TurnNote("NOTHING_SENT", f"{agent.name} ended its turn ({stop_reason[:100]}) without any text.")
            return Answer(state=state, ignored=ignored, note=note, usage=usage)
        notice = "" if restored else f"{NEW_MEMORY}\n\n"
        content: dict[str, object] = {"text": notice + text}
        if files.links:
            content["files"] = list(files.links)
        messages = (OutMessage(content=content, attached=tuple(files.embedded)),)
        return Answer(messages=messages, state=state, ignored=ignored, usage=usage)

    async def _cancel(self, agent: Agent, prompting: _Prompting) -> None:
        """Cancel the prompt; end an agent that does not stop."""
        await agent.cancel()
        with anyio.move_on_after(self._times.cancel_s):
            await prompting.over.wait()
        if not prompting.over.is_set():
            await self._drop()

    async def _drop(self) -> None:
        """End the agent, if one runs."""
        agent, self._agent = self._agent, None
        if agent is not None:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(self._times.close_s):
                    await agent.cancel()
                await agent.end(self._times.close_s)

    async def _heed_stop(self, progress: Progress, listener: Listener, opening: anyio.CancelScope) -> None:
        """When a stop is requested, cancel the prompt under way, or the agent's start if no prompt was sent yet."""
        await progress.stop_asked()
        if listener.begun:
            listener.stop(TurnStoppedError("The message was cancelled, and the agent was asked to stop."))
        else:
            opening.cancel()

    def _tasks(self) -> TaskGroup:
        if self._group is None:
            raise RuntimeError("no turn runs")
        return self._group

    def _log(self, line: str) -> None:
        if self._progress is not None:
            self._progress.wrote(line)


class _Prompting:
    """A prompt under way. `ended` is set when its response arrives or it must end; `over` only when the response arrives."""

    def __init__(self, ended: anyio.Event) -> None:
        self._ended = ended
        self.over = anyio.Event()
        self.response: Params = {}
        self.failure: TurnFailedError | NotSentError | None = None

    def failed(self, failure: _Failure) -> _Failure:
        """Return the turn's failure with the tokens that the agent reported in spite of it."""
        failure.usage = tokens_of(self.response)
        return failure

    async def run(self, agent: Agent, text: str) -> None:
        """Send the prompt and keep its response."""
        try:
            self.response = await agent.prompt(text)
        except (TurnFailedError, NotSentError) as error:
            self.failure = error
        self.over.set()
        self._ended.set()


def _stored(value: str | None) -> tuple[str, str] | None:
    """Return the session id and the agent's name that an earlier turn kept, if they are valid."""
    kept = _kept(value)
    session, agent = kept.get("session"), kept.get("agent")
    return (session, agent if isinstance(agent, str) else "") if isinstance(session, str) and session else None


def _metered(value: str | None) -> Meter:
    """Return the meter with the session's cost that an earlier turn kept."""
    kept = _kept(value)
    cost, currency = kept.get("cost"), kept.get("currency")
    return Meter(cost, currency) if isinstance(cost, float) and isinstance(currency, str) else Meter()


def _kept(value: str | None) -> Params:
    try:
        fields: object = json.loads(value or "")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", fields) if isinstance(fields, dict) else {}
