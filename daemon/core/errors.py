"""The daemon's errors. Every class has a stable code and a hint: the operator's next step.

The base class and the errors of opening files are in `schema.errors`, because the runner shares them.
The file is long because it is a catalogue, read by looking up a code.
"""

from __future__ import annotations

import os

from schema.errors import ClawbusError, StorageError
from schema.os_faults import hint_of


class ConfigError(ClawbusError):
    """The configuration is wrong; the message names the key."""

    code = "CONFIG_INVALID"
    default_hint = "Correct the named key in clawbus.toml (docs/configuration.md lists them all)."


class ConfigUnreadableError(ConfigError):
    """The host cannot read the configuration file now. What it says is unknown; nothing in it is wrong."""

    code = "CONFIG_UNREADABLE"
    default_hint = (
        "Look at this host (`clawbus doctor`, `dmesg`), then repeat the command; a daemon tries again by itself."
    )


class DataFolderError(ClawbusError):
    """The data folder is missing, not writable or not a clawbus folder."""

    code = "DATA_FOLDER"
    default_hint = "Run `clawbus init`, or give the daemon's user write access to the folder."


class DataFolderLockedError(ClawbusError):
    """Another daemon holds the data folder."""

    code = "DATA_FOLDER_LOCKED"
    default_hint = "Stop the other daemon (`systemctl stop clawbus`), or use another --data folder."


class FileAccessError(ClawbusError):
    """A file or folder that a command needs cannot be opened, read or written."""

    code = "FILE_ACCESS"
    default_hint = "Correct what the message names (`ls -ld FILE`), and run the command again."

    @classmethod
    def of(cls, error: OSError) -> FileAccessError:
        """Return the error for an OSError in a command. It names the file and says what to do."""
        name = error.filename if error.filename is not None else "a file or a socket"
        reason = error.strerror or str(error) or type(error).__name__
        hint = None
        if isinstance(error, PermissionError):
            hint = (
                "Run the command as the user who may use that file (often the daemon's: `sudo -u clawbus clawbus ...`)."
            )
        elif error.errno is not None:
            hint = hint_of(error.errno)
        return cls(f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason}.", hint=hint)


class ForeignPackageError(ClawbusError):
    """Another distribution installed a package named daemon, schema or container_runner here."""

    code = "FOREIGN_PACKAGE"
    default_hint = "Install clawbus into a separate virtual environment."


class SocketPathError(ClawbusError):
    """The control socket's path cannot be used."""

    code = "SOCKET_PATH"
    default_hint = "Set control.socket to a path of at most 107 bytes in a folder the daemon may write."


class SocketInUseError(SocketPathError):
    """Another process answers on the control socket."""

    code = "SOCKET_IN_USE"
    default_hint = "Stop the other daemon (`clawbus status` says which), or set control.socket to another path."


class DaemonDownError(ClawbusError):
    """No daemon answers on the control socket."""

    code = "DAEMON_DOWN"
    default_hint = "Start it with `clawbus serve` or `systemctl start clawbus`."


class NotListeningError(DaemonDownError):
    """No process listens on the control socket, or the socket does not exist."""


class NoAccessError(DaemonDownError):
    """The control socket may not be opened by this user. A daemon may well run."""

    default_hint = "Run this as the daemon's user."


class LostAnswerError(DaemonDownError):
    """The daemon took the call and ended before it answered. It may have done what was asked."""

    default_hint = "Start it and repeat; with the same --id a message is never stored twice."


class DaemonSilentError(ClawbusError):
    """The daemon took the call and did not answer in time. It may have done what was asked."""

    code = "DAEMON_SILENT"
    default_hint = "Read `clawbus logs`; repeating a send with the same --id is safe."


class RemoteError(ClawbusError):
    """The daemon refused; `remote_code` is the code of the error it raised."""

    code = "REMOTE"

    def __init__(self, remote_code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.remote_code = remote_code


class UnknownAgentError(ClawbusError):
    """No such agent in the configuration."""

    code = "UNKNOWN_AGENT"
    default_hint = "Use one of these, or add an [agents.NAME] table to clawbus.toml and run `clawbus reload`."


class NotOwnedError(UnknownAgentError):
    """The agent is configured, but belongs to the daemons of another role."""

    code = "NOT_OWNED"
    default_hint = "Ask the daemon of that role, or move the agent in [ownership] (`clawbus worker list`)."


class UnknownEgressError(ClawbusError):
    """No such route or table of hosts in [egress]."""

    code = "UNKNOWN_EGRESS"
    default_hint = "Use one of these, or add an [egress.routes.NAME] table to clawbus.toml (docs/egress.md)."


class UnknownSessionError(ClawbusError):
    """No such session."""

    code = "UNKNOWN_SESSION"
    default_hint = "`clawbus session list` lists them; a first message makes a new one."


class UnknownMessageError(ClawbusError):
    """No such message in this session."""

    code = "UNKNOWN_MESSAGE"
    default_hint = "`clawbus message list` lists the newest messages of all sessions."


class UnknownQuestionError(ClawbusError):
    """The session has no such question, or it was asked in another place."""

    code = "UNKNOWN_QUESTION"
    default_hint = "`clawbus question list` lists the open ones."


class QuestionClosedError(ClawbusError):
    """The question was decided already, and the decision does not change."""

    code = "QUESTION_CLOSED"
    default_hint = "`clawbus question show ID` says how it ended. Send the agent a message instead."


class AnswerRefusedError(ClawbusError):
    """The answer is empty, too long, or none of the options. The question stays open."""

    code = "ANSWER_REFUSED"
    default_hint = "Answer with an option's label, id or number; `clawbus question show ID` lists them."


class AnswerForbiddenError(ClawbusError):
    """The person who answered may not answer this question. It stays open."""

    code = "ANSWER_FORBIDDEN"
    default_hint = "agents.NAME.answers_from says who may; `clawbus question answer ID` is an operator's way."


class ScheduleError(ClawbusError):
    """A schedule is invalid, or may not be changed this way."""

    code = "SCHEDULE_INVALID"
    default_hint = "`clawbus schedule add --help` describes each option."


class UnknownScheduleError(ClawbusError):
    """No such schedule."""

    code = "UNKNOWN_SCHEDULE"
    default_hint = "`clawbus schedule list` lists them."


class AmbiguousIdError(ClawbusError):
    """Several sessions have a message with this id."""

    code = "AMBIGUOUS_ID"
    default_hint = "Name the session: --session AGENT/SESSION."


class NotDeadLetterError(ClawbusError):
    """The id is not an open dead letter: it was delivered, is still tried, or was closed. Nothing was changed."""

    code = "NOT_A_DEAD_LETTER"
    default_hint = "See what happened to it: `clawbus dead show`."


class CursorAheadError(ClawbusError):
    """The cursor is above every entry of the mailbox: mailbox.db was lost or replaced by an older copy."""

    code = "CURSOR_AHEAD"
    default_hint = "Read from the beginning (`--after 0`), and skip the answers that you know by `message_out_id`."


class RowGoneError(ClawbusError):
    """The answer's row is gone from outbound.db and cannot be sent again. Nothing was changed."""

    code = "ROW_GONE"
    default_hint = "Drop it (`clawbus dead drop`), and send the message again."


class ContentError(ClawbusError):
    """A message's content is not JSON, or over the limit. Nothing was stored."""

    code = "CONTENT_INVALID"
    default_hint = "Send valid JSON (or text) within limits.max_content_bytes."


class SaveError(ClawbusError):
    """A file of an answer cannot be saved: it is gone, cannot be read, or the folder cannot be written."""

    code = "FILE_NOT_SAVED"
    default_hint = "Name another folder with --save."


class AttachmentError(ClawbusError):
    """A file cannot be attached: a bad name, too large, one too many, or the content names paths itself. Nothing was stored."""

    code = "ATTACHMENT_REFUSED"
    default_hint = "Attach fewer, smaller or renamed files; docs/configuration.md has the limits."


class MessageError(ClawbusError):
    """A field of a message is wrong: its kind, a time, a cron expression. Nothing was stored."""

    code = "MESSAGE_INVALID"
    default_hint = "Correct the named field; docs/contract.md describes each."


class IdConflictError(ClawbusError):
    """A message with other content has this id already."""

    code = "ID_CONFLICT"
    default_hint = "Use a new id for new content; repeat an id only with the same content."


class JournalError(ClawbusError):
    """The systemd journal cannot be read: no journalctl, or no permission."""

    code = "JOURNAL"
    default_hint = "Leave --journal out: the log file has the same events; or join the group systemd-journal."


class RegistryGoneError(StorageError):
    """central.db was deleted, emptied or replaced. The daemon rebuilds it from the session folders."""

    code = "REGISTRY_GONE"
    default_hint = "Leave central.db alone while the daemon runs; if this stays, make room or restart the daemon."


class RuntimeUnavailableError(ClawbusError):
    """The container runtime does not answer. Messages are kept; the daemon retries."""

    code = "RUNTIME_UNAVAILABLE"
    default_hint = "Start Docker (`systemctl start docker`) and check that the daemon's user may use its socket."

    def __init__(self, message: str, *, hint: str | None = None, command: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.command = command  # the command that repairs or examines it


class ContainerTroubleError(RuntimeUnavailableError):
    """The engine answers, but fails at a call about one container. What became of that one is unknown; others go on."""

    code = "CONTAINER_TROUBLE"
    default_hint = "Read the engine's own log (`journalctl -u docker -n 50`); the daemon tries again. Restarting the engine often helps."


class EngineChangedError(RuntimeUnavailableError):
    """The engine that answers is not the one that the containers run on, so it cannot say which of them run."""

    code = "RUNTIME_CHANGED"
    default_hint = (
        "Set docker.host (podman.host) to the engine that has the containers; when that one is gone for good:"
        " stop the daemon, `clawbus install renew`, start it."
    )


class RuntimeChangedError(ConfigError, EngineChangedError):
    """[runtime] kind is not the runtime of this folder's containers, some of which may still run. Nothing was started."""

    code = "RUNTIME_CHANGED"
    default_hint = "End the agents with `clawbus session kill --all`, then start; or set [runtime] kind back."


class ImageError(ClawbusError):
    """The agent image is missing, foreign or of another version."""

    code = "IMAGE_UNUSABLE"
    default_hint = "Run `clawbus image build` (with --base IMAGE for another base)."


class SpawnError(ClawbusError):
    """A container could not be started for another reason."""

    code = "SPAWN_FAILED"
    default_hint = "Read `clawbus session show`; the daemon retries with back-off."


class AgentFileError(SpawnError):
    """A file or folder that an agent's table names is unusable. Its messages wait and lose no try."""

    code = "AGENT_FILE"
    default_hint = "Repair what the error names; `clawbus session release` tries again at once, the daemon later."


class SecretFileError(AgentFileError):
    """A file of `secret_file` is missing, unreadable or empty."""

    code = "SECRET_FILE"
    default_hint = "Write the value into the file and let the daemon's user read it; no reload is needed."


class EnvFileError(AgentFileError):
    """`agents.NAME.env_file` is missing or unreadable, or has a line that is not NAME=VALUE."""

    code = "ENV_FILE"
    default_hint = "Correct the file and let the daemon's user read it; no reload is needed."


class MountSourceError(AgentFileError):
    """A source of `agents.NAME.mounts` is missing, or may no longer be mounted."""

    code = "MOUNT_SOURCE"
    default_hint = "Make the folder, mount its disk, or correct agents.NAME.mounts and run `clawbus reload`."


class ContainerGoneError(ClawbusError):
    """The runtime knows no such container."""

    code = "CONTAINER_GONE"
    default_hint = "Nothing to do: the sweep removes records of containers that are gone."


class NoAnswerError(ClawbusError):
    """A message is finished or held back, and no answer to it is under way."""

    code = "NO_ANSWER"
    default_hint = "`clawbus message show ID` has its history; `clawbus dead list` lists dead letters."


class NotConfirmedError(ClawbusError):
    """A container's exit was not confirmed in time, so nothing after it was done."""

    code = "EXIT_NOT_CONFIRMED"
    default_hint = "Check that the runtime answers (`docker ps`); the daemon keeps trying."


class TransientDeliveryError(ClawbusError):
    """A send failed and may succeed later, after `retry_after_s` seconds if the receiver named them.

    `in_doubt`: the receiver may have taken the answer, because it was sent and no response came. `paced`: one of our
    own limits makes it wait. That is not a failure: it keeps its place before the later ones, and is never given up for it.
    """

    code = "DELIVERY_TRANSIENT"
    default_hint = "Nothing to do yet: it is retried with back-off."

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        hint: str | None = None,
        in_doubt: bool = False,
        paced: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.in_doubt = in_doubt
        self.paced = paced


class PermanentDeliveryError(ClawbusError):
    """A send failed, and would fail again: the answer becomes a dead letter."""

    code = "DELIVERY_PERMANENT"
    default_hint = "Correct what the message names at the receiver or in the configuration."


class AgentHopLimitError(PermanentDeliveryError):
    """A message between agents has been passed on too often: the agents ask each other endlessly."""

    code = "AGENT_HOP_LIMIT"
    default_hint = (
        "Change the agents' instructions and drop the dead letter; or raise agent_messages.max_hops and requeue it."
    )


class ChannelError(ClawbusError):
    """A channel cannot be loaded or started."""

    code = "CHANNEL"
    default_hint = "Check its [channels.NAME] table and that its package is installed."


class ListenError(ClawbusError):
    """The daemon cannot listen on a configured address."""

    code = "LISTEN"
    default_hint = "Free the address (`ss -ltnp` says who has it), or configure another one."


class RequestRefusedError(ClawbusError):
    """A request from outside was refused for its signature, size or form, before anything was stored."""

    code = "REQUEST_REFUSED"
    default_hint = "Correct the request as the message says and send it again."


class BodyTooLargeError(RequestRefusedError):
    """A request's body is over its limit."""

    code = "BODY_TOO_LARGE"
    default_hint = "Send a smaller message; limits.max_content_bytes bounds one message's content."


class RouteRefusedError(ClawbusError):
    """The route cannot be added or removed as asked. Nothing was changed."""

    code = "ROUTE_REFUSED"
    default_hint = "Correct what the message names; `clawbus route list` shows the routes."


class UnknownRouteError(ClawbusError):
    """No such route. Nothing was changed."""

    code = "UNKNOWN_ROUTE"
    default_hint = "`clawbus route list` shows the routes."


class UnknownUserError(ClawbusError):
    """No such user. Nothing was changed."""

    code = "UNKNOWN_USER"
    default_hint = "`clawbus user list` lists the users; `clawbus user add NAME` makes one."


class UserRefusedError(ClawbusError):
    """The user, role or identity cannot be added or changed as asked. Nothing was changed."""

    code = "USER_REFUSED"
    default_hint = "Correct what the message names; `clawbus user list` shows the users."


class PairingClosedError(ClawbusError):
    """No open request has this code: it is unknown, decided or expired. Nothing was changed."""

    code = "PAIRING_CLOSED"
    default_hint = "`clawbus pairing list` lists the requests; a stranger who writes again gets a new code."


class NotAnApproverError(ClawbusError):
    """The person lacks the role: admins let members in, owners make admins and owners. Nothing was changed."""

    code = "NOT_AN_APPROVER"
    default_hint = "Ask an admin or owner of that agent, or the operator of this host."
