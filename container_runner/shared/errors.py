"""The runner's errors: those that stop it, and those that fail a turn.

A TurnFailedError becomes an answer that names its code; it never ends the loop.
"""

from __future__ import annotations

from schema.errors import ClawbusError
from schema.rows import TurnUsage


class SettingsError(ClawbusError):
    """The environment lacks settings of the runner, which exits with code 64."""

    code = "RUNNER_SETTINGS"
    default_hint = "The daemon sets CLAWBUS_RUNNER and CLAWBUS_INCARNATION; docs/contract.md describes them."


class InboundUnreadableError(ClawbusError):
    """inbound.db is missing, locked or in mid-commit. The next poll tries again."""

    code = "INBOUND_UNREADABLE"
    default_hint = "Nothing to do while the daemon runs; after a crash of the host, start the daemon again."


class ClaimLostError(ClawbusError):
    """Another incarnation holds or has finished a message of this turn. Nothing was committed; the runner ends."""

    code = "CLAIM_LOST"
    default_hint = "Two runners worked in one session folder; the newer one continues."


class CannotStartError(ClawbusError):
    """The container is out of processes, file descriptors or memory and cannot start a program.

    The turn's claims are released and no try is charged. The runner exits with code 71, so that the host replaces the
    container.
    """

    code = "CANNOT_START"
    default_hint = "Raise the agent's pids or memory_bytes, or free the machine; the message waits meanwhile."


class TurnFailedError(ClawbusError):
    """The provider could not answer. Senders read the text only with error_detail = "sender".

    `detail` is for the log alone (a stderr tail); it never reaches the sender. `usage` is what the turn used until then.
    """

    usage: TurnUsage | None = None
    code = "TURN_FAILED"
    default_hint = "Read the session's container log."

    def __init__(self, message: str, *, detail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.detail = detail


class TurnDeferredError(ClawbusError):
    """The agent asks for the turn's messages again later. This costs no try."""

    code = "TURN_DEFERRED"
    default_hint = "Nothing to do: the message is tried again, at most for the agent's later_for_s."

    def __init__(self, reason: str | None = None, *, after_s: float | None = None) -> None:
        super().__init__(reason or "The agent asked to be given it again later.")
        self.reason = reason
        self.after_s = after_s


class TurnStoppedError(TurnFailedError):
    """The host asked to stop the turn, because its message was cancelled. Only the container's log says so."""

    code = "TURN_STOPPED"
    default_hint = "Nothing to do: the message was cancelled."


class ProviderCrashedError(TurnFailedError):
    """The provider raised an undeclared exception."""

    code = "PROVIDER_CRASHED"


class UnknownDestinationError(TurnFailedError):
    """Every message of the answer named a destination that this session lacks."""

    code = "UNKNOWN_DESTINATION"
    default_hint = "Answer to a name in `destinations`, or without `to`."


class AnswerInvalidError(TurnFailedError):
    """A line of a JSON-lines answer is invalid."""

    code = "ANSWER_INVALID"
    default_hint = "After a first JSON line every line must be one; docs/write-an-agent.md lists the types."


class AnswerNotTextError(TurnFailedError):
    """The answer is not UTF-8."""

    code = "ANSWER_NOT_UTF8"
    default_hint = "Write UTF-8 to stdout."


class AnswerTooLargeError(TurnFailedError):
    """Stdout, or one message as JSON, is over max_answer_bytes. The program was killed."""

    code = "ANSWER_TOO_LARGE"
    default_hint = "Write less to stdout (logs belong on stderr), or raise max_answer_bytes."


class CommandNotFoundError(TurnFailedError):
    """The agent's command names a program that does not exist."""

    code = "COMMAND_NOT_FOUND"
    default_hint = "Correct the agent's `command`, or install the program in the image."


class CommandNotExecutableError(TurnFailedError):
    """The program exists, but the system refuses to run it."""

    code = "COMMAND_NOT_EXECUTABLE"
    default_hint = "Make it executable (chmod +x) and give a script its #! line."


class CommandExitError(TurnFailedError):
    """The program exited with a code other than 0. The reason has the last line of its stderr."""

    code = "COMMAND_EXIT"


class CheckFailedError(TurnFailedError):
    """The check program of a schedule failed, so it is unknown whether the agent should have been woken."""

    code = "CHECK_FAILED"
    default_hint = (
        "`clawbus schedule show KEY` has the program; it ends with 0, and prints something to wake the agent."
    )


class CommandSignalError(TurnFailedError):
    """The program was killed by a signal."""

    code = "COMMAND_SIGNAL"
    default_hint = "An unexpected SIGKILL means that the program reached its memory limit."


class CommandNotReadyError(TurnFailedError):
    """A program with lifetime "container" did not print its line `ready` first."""

    code = "COMMAND_NOT_READY"
    default_hint = (
        'Print {"type": "ready"} before anything else, and logs to stderr; or leave out the agent\'s `lifetime`.'
    )


class CommandEndedError(TurnFailedError):
    """A program with lifetime "container" ended, or closed its stdout, in mid-turn. The next turn starts it again."""

    code = "COMMAND_ENDED"
    default_hint = 'End each turn with {"type": "end"} and wait for the next one.'


class CommandReportedError(TurnFailedError):
    """A program with lifetime "container" ended its turn with an `error`."""

    code = "COMMAND_FAILED"


class CommandTimeoutError(TurnFailedError):
    """The program did not end within timeout_s. It was killed."""

    code = "COMMAND_TIMEOUT"
    default_hint = "Raise the agent's timeout_s, or make the program answer sooner."
