"""Rows and enums of the shared tables, typed. Values are the ones stored; times are epoch milliseconds once read."""

from __future__ import annotations

from enum import StrEnum

from schema.frozen import frozen


class MessageStatus(StrEnum):
    """messages_in.status."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class AckStatus(StrEnum):
    """processing_ack.status."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    LATER = "later"  # the agent asks to be given the message again, see Deferral


class DeliveryState(StrEnum):
    """delivery_attempts.state."""

    QUEUED = "queued"  # known; waits for its time or behind its destination's head
    INTENDED = "intended"  # about to be sent; after a crash: in doubt
    RETRYING = "retrying"  # failed for now; next_attempt_at says when
    DEAD = "dead"  # dead letter


class Kind(StrEnum):
    """Kinds the host accepts and delivers (messages_in.kind and messages_out.kind)."""

    CHAT = "chat"
    CHAT_SDK = "chat-sdk"
    TASK = "task"
    WEBHOOK = "webhook"
    SYSTEM = "system"


@frozen
class Address:
    """Where a message came from or goes to: channel, place on it, thread in that place."""

    channel_type: str
    platform_id: str
    thread_id: str | None = None

    @property
    def key(self) -> str:
        """The FIFO key: rows with the same key are delivered in order, one at a time."""
        return "\x1f".join((self.channel_type, self.platform_id, self.thread_id or ""))


@frozen
class MessageIn:
    """A row of messages_in."""

    id: str
    seq: int
    kind: str
    timestamp: str
    status: MessageStatus
    content: str
    process_after: int | None = None
    recurrence: str | None = None
    series_id: str | None = None
    tries: int = 0
    trigger: bool = True
    channel_type: str | None = None
    platform_id: str | None = None
    thread_id: str | None = None
    source_session_id: str | None = None
    on_wake: bool = False
    traceparent: str | None = None
    not_after: int | None = None
    solo: bool = False
    holds: bool = False
    deferrals: int = 0
    void_ack: str | None = None
    stop_late: bool = False
    relay: str | None = None


@frozen
class Cause:
    """The message that an answer answers, as far as its delivery reports it. `due_at`: when its wait began (epoch ms)."""

    message_id: str
    due_at: int | None = None
    traceparent: str | None = None


@frozen
class MessageOut:
    """A row of messages_out (or host_messages), as read: strings not yet trusted."""

    id: str
    seq: int
    kind: str
    timestamp: str
    content: str
    in_reply_to: str | None = None
    deliver_after: int | None = None
    channel_type: str | None = None
    platform_id: str | None = None
    thread_id: str | None = None
    final: bool = True


@frozen
class TurnNote:
    """A row of turn_notes: what the operator learns about a message's last turn, and its sender does not."""

    code: str
    message: str


@frozen
class ToolCall:
    """One use of a tool by an agent. Times are epoch milliseconds, by the runner's clock."""

    name: str
    started_at: int
    ended_at: int


@frozen
class TurnUsage:
    """A row of turn_usage: what a turn used, by its agent's own account. None: it did not say. `cost` is in `currency`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost: float | None = None
    currency: str | None = None
    tools: tuple[ToolCall, ...] = ()

    def counted(self) -> dict[str, int | float | str]:
        """Return what the agent counted, by name, for a history row: without the tools."""
        named = {
            name: getattr(self, name) for name in ("input_tokens", "output_tokens", "cached_tokens", "cost", "currency")
        }
        return {name: value for name, value in named.items() if value is not None}


@frozen
class Deferral:
    """A row of deferrals: what an agent said with "later". `retry_at` (epoch ms) None: it named no time."""

    number: int
    retry_at: int | None = None
    reason: str | None = None


@frozen
class Ack:
    """A row of processing_ack. `changed_at` is None when the runner wrote something that is not an instant.

    `changed_text` is that time as it was written; `deferral` belongs to the status `later` and to no other.
    """

    message_id: str
    status: AckStatus
    changed_at: int | None
    incarnation: str | None = None
    note: TurnNote | None = None
    changed_text: str | None = None
    deferral: Deferral | None = None
    usage: TurnUsage | None = None


@frozen
class ToolInFlight:
    """container_state while a tool runs. `declared_timeout_ms` is what the tool said it may take."""

    name: str
    declared_timeout_ms: int | None = None
    started_at: int | None = None


@frozen
class RunnerSettings:
    """What the daemon passes to a runner at spawn, as JSON in the environment variable CLAWBUS_RUNNER."""

    provider: str = "echo"
    command: tuple[str, ...] = ()
    timeout_s: float = 600.0
    max_batch: int = 10
    poll_s: float = 1.0
    watch_step_ms: int = 5
    grace_s: float = 8.0
    max_answer_bytes: int = 1_048_576
    max_files: int = 10  # the most files in one message of an answer
    max_file_bytes: int = 8_388_608  # the most bytes of all these files together
    log_level: str = "info"
    keep_s: float = 0.0
    prune_batch: int = 500
    mode: str = ""  # an ACP agent's mode
    permissions: tuple[str, ...] = ()  # an ACP agent's permission policies, as KIND=POLICY
    tools: tuple[str, ...] = ()  # the MCP tools that an ACP agent gets
    lifetime: str = "turn"  # how long a `command` program lives: turn, or container
    output: str = "auto"  # what a program's stdout is: auto, text or lines
    leftovers: str = "end"  # what becomes of processes that a turn leaves running: end, or keep
    error_detail: str = "operator"  # who reads why a turn failed: operator, or the sender too
    # The port on 127.0.0.1 from which connections are forwarded to the gate: 0 for any free one, -1 for none.
    egress_port: int = -1
    egress_env: tuple[str, ...] = ()  # NAME=VALUE for the agent's program; {gate} stands for that address
