"""What a simulated agent does before its answer: says things, edits and reacts, asks for later, requests changes.

It says the same in each try of a message, as an agent may. It uses both ways: the provider's progress and the real tools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import anyio.to_thread

from container_runner.providers.protocol import OutMessage, Progress, Turn
from container_runner.shared.sent_files import FileSource
from container_runner.tools.calls import Calls, ToolError
from container_runner.tools.session import ToolSession
from daemon.core.session_key import SessionKey
from schema.tools import TOOLS
from tests.simulation.talk_records import Said
from tests.simulation.world import World

EMOJI: Final = "\N{THUMBS UP SIGN}"
CHANGE: Final = "egress_host"


class Talking:
    """The talk of one container's agent. `folders` are its session's `in` and `out`."""

    def __init__(self, world: World, container: str, key: SessionKey, folders: tuple[Path, Path]) -> None:
        self._world = world
        self._container = container
        self._key = key
        files = FileSource(folders[1], 1, 1)
        session = ToolSession(*folders, (key.agent, key.session), world.clock.now_ms)
        self._calls = Calls(session, frozenset(TOOLS), files, sleep=lambda _: None)
        # Of its own: how far a try comes is not what it would say.
        self._tries = Random(f"talk {world.seed} {container}")
        self._times: Counter[str] = Counter()
        self._about = ""

    async def speak(self, turn: Turn, progress: Progress) -> None:
        """Say what this turn's first message asks for, in this order, perhaps not to the end."""
        world = self._world
        first = next(message for message in turn.messages if message.trigger)
        self._about = f"{first.id}/{first.seq}/{first.timestamp}"
        if world.healing and first.kind != "chat" and self._about not in world.talk.begun:
            return  # its own schedules and questions wake it, and a run ends
        plan = Random(f"talk {world.seed} {self._key} {self._about}")
        if plan.random() < 0.3:
            return
        world.talk.begun.add(self._about)
        self._times.clear()
        ways: list[Callable[[int, Turn, Progress], Awaitable[object]]] = [
            self._say, self._say, self._say_twice, self._status, self._say_to, self._send, self._send_and_edit,
            self._react, self._react_to_own, self._ask_for_later, self._change, self._read,
        ]  # fmt: skip
        for number in range(plan.choice((1, 2, 3, 4))):
            way = plan.choice(ways)
            if self._tries.random() < 0.1:
                return
            await anyio.sleep(self._tries.expovariate(3.0))
            world.counts[f"talk{way.__name__}"] += 1
            await way(number, turn, progress)

    # --- through the provider

    async def _say(self, number: int, turn: Turn, progress: Progress, to: str | None = None) -> None:
        text = self._text(number)
        identity = await progress.say(OutMessage({"text": text}, to=to))
        self._note(identity, text)

    async def _say_twice(self, number: int, turn: Turn, progress: Progress) -> None:
        await self._say(number, turn, progress)
        await self._say(number, turn, progress)

    async def _status(self, number: int, turn: Turn, progress: Progress) -> None:
        for step in ("begun", "half way"):
            text = self._text(number, step)
            self._note(await progress.say(OutMessage({"text": text}), key=f"status {number}"), text)

    async def _say_to(self, number: int, turn: Turn, progress: Progress) -> None:
        if turn.destinations:
            await self._say(number, turn, progress, to=turn.destinations[0].name)

    # --- through the tools

    async def _send(self, number: int, turn: Turn, progress: Progress, text: str | None = None) -> str | None:
        text = text or self._text(number)
        done = await self._tool("send_message", text=text)
        if done is not None:
            self._note(str(done["id"]), text)
        return None if done is None else str(done["id"])

    async def _send_and_edit(self, number: int, turn: Turn, progress: Progress) -> None:
        sent = await self._send(number, turn, progress)
        text = self._text(number, "again")
        if sent is not None and (done := await self._tool("edit_message", message=sent, text=text)) is not None:
            self._note(str(done["id"]), text)

    async def _react(self, number: int, turn: Turn, progress: Progress, message: str | None = None) -> None:
        self._count(EMOJI)
        named = {} if message is None else {"message": message}
        done = await self._tool("react", emoji=EMOJI, **named)
        if done is not None:
            self._note(str(done["id"]), EMOJI)

    async def _react_to_own(self, number: int, turn: Turn, progress: Progress) -> None:
        sent = await self._send(number, turn, progress)
        if sent is not None:
            await self._react(number, turn, progress, sent)

    async def _ask_for_later(self, number: int, turn: Turn, progress: Progress) -> None:
        # In each try the same: it is the text and the options that make it the same question.
        timeout = Random(f"later {self._about} {number}").choice((2.0, 30.0, 300.0))
        await self._tool(
            "ask_user",
            question=f"Later {number}?",
            options=["yes", "no"],
            free_text=False,
            timeout_s=timeout,
            wait=False,
        )

    async def _change(self, number: int, turn: Turn, progress: Progress) -> None:
        await self._tool("request_change", kind=CHANGE, what="pypi.org:443", reason=f"for {self._about}")

    async def request(self, wanted: Mapping[str, object]) -> None:
        """Ask the host about a schedule. Nobody can wait for it in here: the tool says that the request is stored and open."""
        fields = dict(wanted)
        await self._tool(str(fields.pop("type")), **fields)

    async def _read(self, number: int, turn: Turn, progress: Progress) -> None:
        for tool in ("read_history", "list_destinations", "list_schedules"):
            await self._tool(tool)

    async def _tool(self, name: str, **given: Any) -> dict[str, object] | None:
        """Call a tool of the container's server. None when it refuses."""
        world = self._world
        world.step(self._container, f"calls {name} for {self._about}")
        try:
            return await anyio.to_thread.run_sync(self._calls.call, name, given)
        except ToolError as error:
            world.counts[f"tool_{error.code}"] += 1
            world.trace(self._container, f"{name}: {error.code} {error}")
            return None

    # --- for the checks

    def _text(self, number: int, more: str = "") -> str:
        """Return a text that no other message's turn says, counted as about to be said."""
        text = f"{number}{more} of {self._about}"
        self._count(text)
        return text

    def _count(self, text: str) -> None:
        self._times[text] += 1
        self._world.talk.count(self._key, text, self._about, self._times[text])

    def _note(self, identity: str, text: str) -> None:
        self._world.step(self._container, f"has said {identity}: {text}")
        self._world.talk.said.append(Said(self._key, identity, text, self._about))
