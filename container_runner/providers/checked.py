"""Runs a schedule's check program before the agent: the agent is woken only if the program prints something.

It runs as a turn of the provider `command` does: in the agent's folder, with the turn on its standard input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

from container_runner.providers.command import CommandProvider
from container_runner.providers.protocol import Answer, Progress, Provider, ProviderContext, Turn, TurnMessage
from container_runner.shared.errors import CheckFailedError, TurnFailedError, TurnStoppedError
from schema.rows import TurnNote

CHECK_S: Final = 60.0
MAX_BYTES: Final = 65_536
QUIET: Final = "CHECK_QUIET"
_TOOL: Final = "check"
_END_S: Final = 5.0  # seconds to end a program that takes too long


class CheckedProvider:
    """A provider with a check before each turn that has one."""

    def __init__(self, provider: Provider, context: ProviderContext) -> None:
        self._provider = provider
        self._context = context
        self.accepts_follow_ups = provider.accepts_follow_ups
        self.silence = provider.silence

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Check, then work on the turn; without anything to say, return an answer without messages. Raise a TurnFailedError."""
        if turn.check is None:
            return await self._provider.run(turn, progress)
        await progress.tool_started(_TOOL, CHECK_S + _END_S)
        said = await self._check(turn.check, turn, progress)
        await progress.tool_ended()
        if not said.strip():
            return Answer(note=TurnNote(QUIET, "The schedule's check printed nothing, so the agent was not woken."))
        return await self._provider.run(replace(turn, messages=_with_output(turn.messages, said)), progress)

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    async def _check(self, program: str, turn: Turn, progress: Progress) -> str:
        settings = replace(
            self._context.settings, command=("/bin/sh", "-c", program), timeout_s=CHECK_S, output="text",
            max_answer_bytes=MAX_BYTES,
        )  # fmt: skip
        try:
            answer = await CommandProvider(replace(self._context, settings=settings)).run(turn, progress)
        except TurnStoppedError:
            raise
        except TurnFailedError as error:
            raise CheckFailedError(f"The schedule's check failed: {error}", detail=error.detail) from error
        return str(answer.messages[0].content["text"])


def is_quiet(answer: object) -> bool:
    """Return whether the check let the agent sleep: then the agent has not read the turn's context."""
    return isinstance(answer, Answer) and answer.note is not None and answer.note.code == QUIET


def _with_output(messages: Sequence[TurnMessage], said: str) -> tuple[TurnMessage, ...]:
    """Return the messages with the check's output below the text of the last trigger, and as `check` of its content."""
    last = next(number for number in reversed(range(len(messages))) if messages[number].trigger)
    parsed = messages[last].parsed()
    content = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {"text": parsed}
    told = {**content, "text": f"{content.get('text', '')}\n\n{said}", "check": said}
    changed = replace(messages[last], content=json.dumps(told, ensure_ascii=True))
    return (*messages[:last], changed, *messages[last + 1 :])
