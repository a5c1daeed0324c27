"""One run of an agent's program: its process, its streams, and the requests that open a session in it.

The process lives for as long as its container. Its streams are read only while a turn runs (`Peer.serve`, `hear`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar, cast

import anyio
from anyio.abc import Process

from container_runner.providers.acp.errors import (
    AcpDiedError,
    AcpLoginError,
    AcpModeError,
    AcpNotSpokenError,
    AcpRefusedError,
    AcpSilentError,
    AcpVersionError,
)
from container_runner.providers.acp.rpc import (
    METHOD_NOT_FOUND,
    AgentGoneError,
    Handler,
    NotSentError,
    Params,
    Peer,
    RpcError,
)
from container_runner.providers.error_output import ErrorOutput, last_words
from container_runner.providers.program import (
    by_whom,
    end_program,
    has_ended,
    no_more_output,
    opened,
    program_environment,
    signal_name,
    start_program,
)
from container_runner.providers.protocol import ProviderContext
from container_runner.shared.children import Children
from container_runner.shared.errors import TurnFailedError
from container_runner.shared.running_time import sleep_running
from schema.frozen import frozen
from schema.json_text import whole_text

PROTOCOL_VERSION: Final = 1
_AUTH_REQUIRED: Final = -32000
_SHOWN: Final = 300
_EXIT_WAIT_S: Final = 1.0
_MAX_STRAY: Final = 100
# We offer the agent no file system and no terminal of ours: it has those of its container.
_CAPABILITIES: Final[Mapping[str, object]] = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}

T = TypeVar("T")


@frozen
class Times:
    """Timeouts in seconds: how long an agent may take to answer, and how long it must be quiet after a replay.

    Agents on a busy machine took up to 37 s for `initialize` and 23 s for `session/new`.
    """

    initialize_s: float = 60.0
    session_s: float = 120.0
    cancel_s: float = 10.0
    quiet_s: float = 1.0
    close_s: float = 0.5


@frozen
class Opened:
    """A session that is ready for a prompt. `restored` False: a new one, although an earlier one was asked for."""

    session_id: str
    restored: bool
    replays: bool = False


class Agent:
    """A running agent. `log` gets each line of its standard error, and each line of its output that is not of the protocol."""

    def __init__(
        self, process: Process, children: Children, command: Sequence[str], log: Callable[[str], None]
    ) -> None:
        self._process = process
        self._children = children
        self._log = log
        self._stray = 0
        self._first_stray = ""
        self._heard = anyio.Event()
        self._stderr = ErrorOutput(log)
        self._capabilities: Params = {}
        self._mode_option: object = (
            None  # the id of the option that sets the mode; None: the agent has a method for that
        )
        self.name = Path(command[0]).name
        self.peer = Peer(opened(process.stdin), opened(process.stdout), self._take_stray)
        self.session_id = ""
        self._servers: list[dict[str, object]] = []
        self.mode: str | None = None

    @classmethod
    async def start(cls, context: ProviderContext, log: Callable[[str], None]) -> Agent:
        """Start the program. Raise CannotStartError or a TurnFailedError."""
        cwd = context.agent_folder if context.agent_folder.is_dir() else None
        environ = program_environment(context.environ, sys.prefix)
        command = context.settings.command
        process = await start_program(command, cwd, environ, context.children)
        agent = cls(process, context.children, command, log)
        if context.tools is not None:
            context.tools.ready.unlink(missing_ok=True)  # an earlier agent may have left the file
            agent._servers = [context.tools.entry]
        return agent

    @property
    def alive(self) -> bool:
        """Whether the program runs and may still answer."""
        return not self.peer.gone and not has_ended(self._process)

    async def serve(self, handler: Handler) -> None:
        """Dispatch what the agent sends until it closes its output or exits.

        (A child that it left behind may keep the output open.)
        """
        async with anyio.create_task_group() as group:

            async def notice_end() -> None:
                await no_more_output(self._process)
                self.peer.close()
                group.cancel_scope.cancel()

            group.start_soon(notice_end)
            await self.peer.serve(handler)
            group.cancel_scope.cancel()

    async def hear(self) -> None:
        """Read the agent's standard error until the agent closes it."""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self._stderr.read(opened(self._process.stderr))
        self._heard.set()

    async def initialize(self, limit_s: float) -> None:
        """Agree on the protocol's version. Raise a TurnFailedError."""
        params: Params = {
            "protocolVersion": PROTOCOL_VERSION,
            "clientCapabilities": _CAPABILITIES,
            "clientInfo": {"name": "clawbus", "version": "1"},
        }
        result = _mapping(await self._ask("initialize", params, limit_s))
        version = result.get("protocolVersion")
        if version != PROTOCOL_VERSION:
            raise AcpVersionError(
                f"{self.name} speaks version {str(version)[:50]} of the protocol, and clawbus version {PROTOCOL_VERSION}."
            )
        self._capabilities = _mapping(result.get("agentCapabilities"))
        named = _mapping(result.get("agentInfo")).get("name")
        self.name = whole_text(named)[:_SHOWN] if isinstance(named, str) and named else self.name

    async def open_session(self, known: str | None, cwd: str, wanted_mode: str, limit_s: float) -> Opened:
        """Restore the session `known`, or open a new one, and set its mode. Raise a TurnFailedError."""
        for method in self._ways_back() if known is not None else ():
            params: Params = {"sessionId": known, "cwd": cwd, "mcpServers": self._servers}
            try:
                result = _mapping(await self._try(method, params, limit_s))
            except RpcError as error:
                self._log(f"{method}: {whole_text(str(error))[:_SHOWN]} ({error.code})")
                continue
            self.session_id = str(known)
            await self._settle_mode(result, wanted_mode, limit_s)
            return Opened(self.session_id, restored=True, replays=method == "session/load")
        result = _mapping(await self._ask("session/new", {"cwd": cwd, "mcpServers": self._servers}, limit_s))
        self.session_id = _session_id(result)
        await self._settle_mode(result, wanted_mode, limit_s)
        return Opened(self.session_id, restored=known is None)

    def _ways_back(self) -> tuple[str, ...]:
        """Return the methods that restore a session, the silent one first, as far as the agent offers them."""
        sessions = self._capabilities.get("sessionCapabilities")
        resumes = isinstance(sessions, dict) and cast("dict[str, object]", sessions).get("resume") is not None
        loads = self._capabilities.get("loadSession") is True
        return (("session/resume",) if resumes else ()) + (("session/load",) if loads else ())

    async def _settle_mode(self, result: Params, wanted: str, limit_s: float) -> None:
        """Set the configured mode and check it: agents start in different ones, and some let a model decide.

        An agent lists its modes in `modes`, or in an option of the category `mode`.
        """
        option, modes = _mode_option(result), _mapping(result.get("modes"))
        offered = _names(modes.get("availableModes"), "id") or _names(option.get("options"), "value")
        if not offered and not wanted:
            return
        if wanted not in offered:
            there = ", ".join(offered)[:_SHOWN] or "none"
            what = f"has no mode {wanted!r}" if wanted else "needs a mode"
            raise AcpModeError(f"{self.name} {what}; it offers: {there}.")
        self._mode_option = None if modes else option.get("id")
        await self.set_mode(wanted, limit_s)

    async def set_mode(self, mode: str, limit_s: float) -> None:
        """Set a mode that the agent offers. Raise a TurnFailedError."""
        if self._mode_option is None:
            await self._ask("session/set_mode", {"sessionId": self.session_id, "modeId": mode}, limit_s)
        else:
            params: Params = {"sessionId": self.session_id, "configId": self._mode_option, "value": mode}
            await self._ask("session/set_config_option", params, limit_s)
        self.mode = mode

    async def prompt(self, text: str) -> Params:
        """Send the prompt and return the response. No time-out: the host judges the turn by its progress.

        Raise a TurnFailedError, or NotSentError when the agent had ended before.
        """
        params: Params = {"sessionId": self.session_id, "prompt": [{"type": "text", "text": text}]}
        try:
            return _mapping(await self.peer.request("session/prompt", params))
        except RpcError as error:
            raise self._refused("session/prompt", error) from error
        except NotSentError:
            raise
        except AgentGoneError as error:
            raise await self.death() from error

    async def cancel(self) -> None:
        """Ask the agent to end the prompt under way."""
        try:
            await self.peer.notify("session/cancel", {"sessionId": self.session_id})
        except AgentGoneError:
            return  # the agent is gone, and so is its prompt

    async def _ask(self, method: str, params: Params, limit_s: float) -> object:
        try:
            return await self._try(method, params, limit_s)
        except RpcError as error:
            raise self._refused(method, error) from error

    async def _try(self, method: str, params: Params, limit_s: float) -> object:
        """Return the result. Raise RpcError, or a TurnFailedError when there is no valid response in time."""
        try:
            return await in_time(lambda: self.peer.request(method, params), limit_s)
        except AgentGoneError as error:
            raise await self.death() from error
        except TimeoutError as error:
            if self._stray:
                raise self._not_spoken(f"did not answer {method} within {limit_s:g} s") from error
            raise AcpSilentError(
                f"{self.name} did not answer {method} within {limit_s:g} s.{last_words(self._stderr.tail())}",
                detail=self._stderr.tail(),
            ) from error

    def _refused(self, method: str, error: RpcError) -> TurnFailedError:
        reason = _reason(error)
        detail = f"{json.dumps(error.data)[:2000]}\n{self._stderr.tail()}"
        if error.code == _AUTH_REQUIRED:
            return AcpLoginError(f"{self.name} wants a login: {reason}.", detail=detail)
        if method == "initialize" and error.code == METHOD_NOT_FOUND:
            return AcpNotSpokenError(f"{self.name} does not know the protocol: {reason}.", detail=detail)
        return AcpRefusedError(f"{self.name} refused {method}: {reason} ({error.code}).", detail=detail)

    def _not_spoken(self, what: str) -> AcpNotSpokenError:
        return AcpNotSpokenError(
            f"{self.name} {what}; it printed {self._stray} lines that are not of the protocol, the first:"
            f" {self._first_stray!r}.",
            detail=self._stderr.tail(),
        )

    async def death(self) -> TurnFailedError:
        """Return the error of an agent that no longer answers, once its exit code and its last output are known."""
        if self.peer.too_long is not None:
            return self.peer.too_long
        with anyio.move_on_after(_EXIT_WAIT_S):
            await self._process.wait()
            await self._heard.wait()
        code, tail = self._process.returncode, self._stderr.tail()
        if self._stray and not self._capabilities:
            return self._not_spoken("ended" if code is not None else "closed its output")
        how = "closed its output"
        if code is not None:
            how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal_name(-code)}{by_whom(-code)}"
        return AcpDiedError(f"{self.name} {how}.{last_words(tail)}", detail=tail)

    async def end(self, close_s: float) -> None:
        """End the agent: close its input, and send signals to what has not exited after `close_s` seconds.

        Several agents stay when their input ends, and one of them ignores SIGTERM.
        """
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None:
                with anyio.move_on_after(close_s):
                    await opened(self._process.stdin).aclose()
                    await self._process.wait()
            await end_program(self._process)
        self._children.forget(self._process.pid)

    def _take_stray(self, line: str) -> None:
        """Log what is not of the protocol, up to a number of lines: some agents print their notices to stdout."""
        self._stray += 1
        self._first_stray = self._first_stray or line
        if self._stray <= _MAX_STRAY:
            self._log(f"stdout: {line}")


async def in_time(work: Callable[[], Awaitable[T]], limit_s: float, stands: Callable[[], bool] = lambda: False) -> T:
    """Return the work's result. Raise TimeoutError once this process has run for `limit_s` seconds.

    Time during which `stands()` is true does not count.
    """
    done: list[T] = []
    failed: list[Exception] = []

    async def do() -> None:
        try:
            done.append(await work())
        except Exception as error:  # noqa: BLE001 -- raised again below, outside the task group, as it is
            failed.append(error)

    async with anyio.create_task_group() as group:

        async def clock() -> None:
            await sleep_running(limit_s, stands)
            group.cancel_scope.cancel()

        group.start_soon(clock)
        await do()
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError
    return done[0]


def _reason(error: RpcError) -> str:
    """Return the error's text and its data, because the text alone is often just "Internal error"."""
    said, fields = str(error), _mapping(error.data)
    told = [fields[key] for key in ("message", "details", "error") if isinstance(fields.get(key), str)]
    data: object = told[0] if told else error.data
    if data:
        said += f": {data if isinstance(data, str) else json.dumps(data)}"
    return " ".join(whole_text(said).split())[:_SHOWN]


def _session_id(result: Params) -> str:
    found = result.get("sessionId")
    if not isinstance(found, str) or not found or len(found) > 1000:
        raise AcpNotSpokenError("The agent opened a session without a valid id.")
    return whole_text(found)


def _mode_option(result: Params) -> Params:
    options = result.get("configOptions")
    for option in cast("list[object]", options) if isinstance(options, list) else []:
        if _mapping(option).get("category") == "mode":
            return _mapping(option)
    return {}


def _names(items: object, key: str) -> list[str]:
    """Return the names in a list of objects, including those inside groups."""
    found: list[str] = []
    for item in cast("list[object]", items)[:1000] if isinstance(items, list) else []:
        name = _mapping(item).get(key)
        if isinstance(name, str):
            found.append(whole_text(name))
        else:
            found.extend(_names(_mapping(item).get("options"), key))
    return found


def _mapping(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
