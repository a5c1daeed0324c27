"""One turn's lines from a program, fed to the parser as they come: progress, tools and questions count at once."""

from __future__ import annotations

from collections.abc import Callable

from anyio.abc import TaskGroup

from container_runner.providers.lines import Ask, Event, OutputParser, ProgressNote, SayNow, ToolStart
from container_runner.providers.protocol import Progress
from container_runner.shared.errors import AnswerTooLargeError


class TurnOutput:
    """Splits a program's output into lines and carries out what they ask for. `answer` hands the program one object.

    Only the answer's size is limited: progress may be reported without limit. `tasks` must be set before the first line.
    """

    def __init__(
        self, parser: OutputParser, max_bytes: int, progress: Progress, answer: Callable[[dict[str, object]], bool]
    ) -> None:
        self.parser = parser
        self.tasks: TaskGroup | None = None
        self.waiting = 0  # open questions: the turn's clock is stopped while there are any
        self._max_bytes = max_bytes
        self._progress = progress
        self._answer = answer
        self._rest = bytearray()

    def lines(self, chunk: bytes) -> list[bytes]:
        """Return the lines that `chunk` completes. Feed them, then call `check_rest`."""
        self._rest += chunk
        lines: list[bytes] = []
        if b"\n" in chunk:
            *complete, last = self._rest.split(b"\n")
            lines = [bytes(line) for line in complete]
            self._rest = last
        return lines

    def check_rest(self) -> None:
        """Raise AnswerTooLargeError when what follows the last line end is too long already."""
        self._check_size(len(self._rest))

    def last(self) -> bytes:
        """Return what follows the last line end, and forget it."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest

    async def feed(self, line: bytes) -> None:
        """Handle one line. Raise a TurnFailedError for an invalid one."""
        self._check_size(len(line))
        await self._tell(self.parser.feed(line))

    def _check_size(self, more: int) -> None:
        if self.parser.held + more > self._max_bytes + 1:  # the last newline is not part of the answer
            raise AnswerTooLargeError(f"The answer has more than {self._max_bytes} bytes.")

    async def _tell(self, event: Event | None) -> None:
        match event:
            case None:
                pass
            case ProgressNote(""):
                self._progress.event()
            case ProgressNote(note):
                self._progress.note(note)
            case ToolStart(name, timeout_s):
                await self._progress.tool_started(name, timeout_s)
            case SayNow(message, key):
                await self._progress.say(message, key)
            case Ask():
                assert self.tasks is not None
                self.tasks.start_soon(self._ask, event)
            case _:
                await self._progress.tool_ended()

    async def _ask(self, event: Ask) -> None:
        """Ask, and hand the program the answer. The turn's end cancels this; the host then closes the question."""
        self.waiting += 1
        try:
            decision = await self._progress.ask(event.question, event.key)
        finally:
            self.waiting -= 1
        if decision is not None and not self._answer({"type": "answer", "key": event.key, **decision.to_json()}):
            self._progress.wrote("clawbus: the program does not read its answers; one is lost")
