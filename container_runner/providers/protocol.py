"""The provider protocol, and the values that the loop and a provider exchange.

A provider works on one turn and never touches a session file. It returns an Answer or raises a TurnFailedError. Any other
exception fails the turn as PROVIDER_CRASHED.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, cast

from container_runner.shared.children import Children
from container_runner.shared.reply import OutFile
from container_runner.shared.tool_server import ToolServer
from schema.frozen import frozen
from schema.ids import MessageLife
from schema.layout import CONTAINER_IN
from schema.questions import Decision, Question
from schema.rows import Address, Kind, RunnerSettings, TurnNote, TurnUsage

CONTRACT: Final = 1


@frozen
class TurnMessage:
    """A claimed row. `content` is the stored text; `timestamp` is passed on as it was written."""

    id: str
    seq: int
    kind: str
    timestamp: str
    content: str
    trigger: bool = True
    channel_type: str | None = None
    platform_id: str | None = None
    thread_id: str | None = None
    tries: int = 0  # how many earlier turns with this message died

    def life(self, session: tuple[str, str]) -> MessageLife:
        """Return this acceptance of the message. `session`: the agent's and the session's name."""
        return MessageLife(*session, self.id, self.seq, self.timestamp)

    def parsed(self) -> object:
        """Return the content parsed as JSON, or the text itself if it is not JSON."""
        try:
            return cast(object, json.loads(self.content))
        except ValueError:
            return self.content

    def to_json(self) -> dict[str, object]:
        """Return the message as an agent program sees it (docs/write-an-agent.md)."""
        return {
            "id": self.id,
            "seq": self.seq,
            "kind": self.kind,
            "timestamp": self.timestamp,
            "content": self.parsed(),
            "trigger": self.trigger,
            "tries": self.tries,
            "channel_type": self.channel_type,
            "platform_id": self.platform_id,
            "thread_id": self.thread_id,
        }


@frozen
class Destination:
    """A named place that an answer may be sent to, other than the place that its message came from."""

    name: str
    type: str
    display_name: str | None = None
    channel_type: str | None = None
    platform_id: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the destination as an agent program sees it."""
        return {
            "name": self.name,
            "type": self.type,
            "display_name": self.display_name,
            "channel_type": self.channel_type,
            "platform_id": self.platform_id,
        }


@frozen
class Turn:
    """One batch of messages and what else a turn needs. `messages` are in seq order and include at least one trigger."""

    agent: str
    session: str
    incarnation: str
    messages: tuple[TurnMessage, ...]
    routing: Address | None = None
    destinations: tuple[Destination, ...] = ()
    state: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    schedules: Sequence[Mapping[str, object]] = ()  # the agent's own schedules
    check: str | None = None  # a program that decides whether the agent is woken
    in_folder: str = CONTAINER_IN  # the folder with the files that came with the messages

    def to_json(self) -> dict[str, object]:
        """Return the object that an agent program reads on stdin."""
        routing = self.routing
        return {
            "contract": CONTRACT,
            "agent": self.agent,
            "session": self.session,
            "incarnation": self.incarnation,
            "messages": [message.to_json() for message in self.messages],
            "routing": None
            if routing is None
            else {
                "channel_type": routing.channel_type,
                "platform_id": routing.platform_id,
                "thread_id": routing.thread_id,
            },
            "destinations": [destination.to_json() for destination in self.destinations],
            "state": dict(self.state),
            "schedules": [dict(one) for one in self.schedules],
            "in_folder": self.in_folder,
        }


@frozen
class OutMessage:
    """One message of an answer. `to` None: send it to where the turn's messages came from. `deliver_after`: epoch ms.

    A provider names files in the content's `files`, and may bring others in `attached`, which holds all of them once the
    runner has read the named ones.
    """

    content: Mapping[str, object]
    to: str | None = None
    thread_id: str | None = None
    deliver_after: int | None = None
    kind: str = Kind.CHAT
    attached: tuple[OutFile, ...] = ()


@frozen
class Answer:
    """A turn's result. All of it is committed together, or none. A `state` value of None removes the key.

    `ignored` lists unknown line types. `note` explains to the operator why nothing is sent. `usage` is what the turn used.
    """

    messages: Sequence[OutMessage] = ()
    state: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    ignored: Sequence[str] = ()
    note: TurnNote | None = None
    usage: TurnUsage | None = None


@frozen
class DeclaredTimeout:
    """Declares that a provider shows no progress during a turn, as a tool does: its name, and the seconds it may take."""

    name: str
    timeout_s: float | None


class Progress(Protocol):
    """How a running turn reports progress and receives messages that arrive during it."""

    def event(self) -> None:
        """Touch the heartbeat: the agent did something. Never call this from a timer."""
        ...

    def note(self, text: str) -> None:
        """Touch the heartbeat, and keep what the agent says that it is doing, for the operator."""
        ...

    def wrote(self, line: str) -> None:
        """Keep a line of the program's standard error. For a turn that never ends it is all that the operator has."""
        ...

    async def tool_started(self, name: str, timeout_s: float | None = None) -> None:
        """Declare that a tool runs. Without `timeout_s` it may take the rest of the turn's timeout."""
        ...

    async def tool_ended(self) -> None:
        """Declare that the tool has ended; what the provider declared for the whole turn applies again."""
        ...

    def tool_calls(self, calls: Mapping[str, str]) -> None:
        """Name the tool calls under way (names by id), where several may be at once: they are timed in place of tools."""
        ...

    async def say(self, message: OutMessage, key: str | None = None) -> str:
        """Send a message now, in the middle of the turn, and return its id. It is not an answer.

        A second message with the same key edits the first one, where the channel can. A message that a later try of the turn
        repeats is sent only once. Raise a TurnFailedError for a message that cannot be sent.
        """
        ...

    async def ask(self, question: Question, key: str | None = None) -> Decision | None:
        """Ask a person and wait for the answer, at most `question.timeout_s` seconds.

        Meanwhile the host allows the agent's silence. The same `key` in a later try of the same message is the same
        question: an answer that was recorded is returned at once. Without a key, what is asked is the key. Return None, as
        soon as the question is stored, for one with `notify`.
        """
        ...

    async def stop_asked(self) -> None:
        """Return once the turn is to be stopped because its message was cancelled; until then, wait.

        The provider then asks its agent to stop, in the agent's own way, and raises TurnStoppedError. If the agent goes on,
        the provider may do as it likes: the host ends the container after the agent's `cancel_grace_s`.
        """
        ...

    async def follow_ups(self) -> tuple[TurnMessage, ...]:
        """Wait for messages that arrive after the turn began. The returned messages are acked with this turn."""
        ...


class Provider(Protocol):
    """Runs one kind of agent, one turn at a time."""

    accepts_follow_ups: bool
    silence: DeclaredTimeout | None

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """Work on the turn. May be cancelled at any await, and must then leave no process behind."""
        ...

    async def close(self) -> None:
        """End what outlives a turn. Called once, after the last turn."""
        ...


@frozen
class ProviderContext:
    """The arguments that a provider is built with.

    `environ` is the runner's own environment. A provider that starts processes must register them with `children`.
    `tools` is the MCP server for its agent, if the agent may use any. `home` is the agent's HOME.
    """

    settings: RunnerSettings
    agent_folder: Path
    environ: Mapping[str, str]
    children: Children = field(default_factory=Children)
    tools: ToolServer | None = None
    home: Path = field(default_factory=Path.home)
