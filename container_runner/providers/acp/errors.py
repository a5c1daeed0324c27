"""How a turn with an ACP agent fails. Each error says what the operator can do."""

from __future__ import annotations

from container_runner.shared.errors import TurnFailedError


class AcpVersionError(TurnFailedError):
    """The agent speaks another version of the Agent Client Protocol than clawbus does."""

    code = "ACP_VERSION"
    default_hint = "Install a version of the agent that speaks version 1 of the protocol, or update clawbus."


class AcpNotSpokenError(TurnFailedError):
    """The program does not speak the Agent Client Protocol: it printed something else, or invalid messages."""

    code = "ACP_NOT_SPOKEN"
    default_hint = "Correct the agent's `command`: many agents need an option, such as --acp, to speak the protocol."


class AcpSilentError(TurnFailedError):
    """The agent did not answer a request in time while its session was being opened. It was ended."""

    code = "ACP_SILENT"
    default_hint = "Try the agent's command by hand in its image; look at its last words in `clawbus run show`."


class AcpDiedError(TurnFailedError):
    """The agent's program ended while it was starting or working on a turn. The next message starts it again."""

    code = "ACP_DIED"
    default_hint = "Read its last words in `clawbus run show`; a SIGKILL mostly means too little memory_bytes."


class AcpModeError(TurnFailedError):
    """The agent offers modes, and the configured one is not among them, or none is configured."""

    code = "ACP_MODE"
    default_hint = "Set the agent's `mode` to one of those that the error lists."


class AcpLoginError(TurnFailedError):
    """The agent wants a login or a key before it works."""

    code = "ACP_LOGIN"
    default_hint = "Give the agent its key as docs/agents.md describes."


class AcpRefusedError(TurnFailedError):
    """The agent answered a request with an error. For a prompt this mostly comes from its model's service."""

    code = "ACP_REFUSED"
    default_hint = "The error is the agent's own; `clawbus run show` shows what it wrote besides."


class AcpTooLongError(TurnFailedError):
    """The agent sent a message of more than 16 MiB, or several hundred requests at once. It was ended."""

    code = "ACP_TOO_LONG"
    default_hint = "Have its tools print less, or report this to the agent's makers."


class AcpTimeoutError(TurnFailedError):
    """The turn took longer than the agent's timeout_s and was cancelled."""

    code = "ACP_TIMEOUT"
    default_hint = (
        "Raise the agent's timeout_s, or remove it: without one, an ACP agent may work while it makes progress."
    )


class AcpCancelledError(TurnFailedError):
    """The agent ended its turn as cancelled, and clawbus had not asked for that."""

    code = "ACP_CANCELLED"
    default_hint = "Send the message again; if it happens each time, look at the agent's last words."
