"""The errors of a turn with an ACP agent. Each tells the operator what to do."""

from __future__ import annotations

from container_runner.shared.errors import TurnFailedError


class AcpVersionError(TurnFailedError):
    """The agent speaks another version of the Agent Client Protocol."""

    code = "ACP_VERSION"
    default_hint = "Install an agent that speaks version 1 of the protocol, or update clawbus."


class AcpNotSpokenError(TurnFailedError):
    """The program does not speak the Agent Client Protocol."""

    code = "ACP_NOT_SPOKEN"
    default_hint = "Correct the agent's `command`: many agents need an option such as --acp."


class AcpSilentError(TurnFailedError):
    """The agent did not answer within 60 s of its start, or open a session within 120 s. It was ended."""

    code = "ACP_SILENT"
    default_hint = "Run the agent's command by hand in its image; read its last output (`clawbus run show`)."


class AcpDiedError(TurnFailedError):
    """The agent's program ended while starting or working. The next message starts it again."""

    code = "ACP_DIED"
    default_hint = "Read its last output (`clawbus run show`); a SIGKILL mostly means too little memory_bytes."


class AcpModeError(TurnFailedError):
    """The agent does not offer the configured mode, or needs one and none is configured."""

    code = "ACP_MODE"
    default_hint = "Set the agent's `mode` to one that the error lists."


class AcpLoginError(TurnFailedError):
    """The agent wants a login or a key."""

    code = "ACP_LOGIN"
    default_hint = "Give the agent its key as docs/agents.md describes."


class AcpRefusedError(TurnFailedError):
    """The agent answered a request with an error, usually one of its model's service."""

    code = "ACP_REFUSED"
    default_hint = "The error is the agent's own; `clawbus run show` has the rest of its output."


class AcpNoSessionError(AcpRefusedError):
    """The agent restored a session that it no longer has, as Hermes does."""


class AcpTooLongError(TurnFailedError):
    """The agent sent over 16 MiB in one message, or 256 requests at once. It was ended."""

    code = "ACP_TOO_LONG"
    default_hint = "Have its tools print less, or report this to the agent's makers."


class AcpTimeoutError(TurnFailedError):
    """The turn exceeded the agent's timeout_s and was cancelled."""

    code = "ACP_TIMEOUT"
    default_hint = "Raise the agent's timeout_s, or remove it: an ACP agent may then work while it makes progress."


class AcpCancelledError(TurnFailedError):
    """The agent ended its turn as cancelled, although clawbus had not cancelled it."""

    code = "ACP_CANCELLED"
    default_hint = "Send the message again; if it repeats, read the agent's last output (`clawbus run show`)."
