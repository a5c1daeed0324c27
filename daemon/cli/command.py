"""What all commands share: the global options (before or after the subcommand), the envelope, the exit codes.

A command is a function `(Invocation, its own options) -> Outcome`. It never prints JSON, never exits and never catches
what it cannot explain. Configuration and the HTTP client are imported when a command first needs them.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, Literal, ParamSpec, cast, get_args

import typer

from daemon.cli.envelope import NextAction, Outcome, Problem, envelope, problem_of, to_json
from daemon.cli.held_signals import release
from daemon.cli.output import Output, OutputLostError, lost, progress
from daemon.cli.suggestions import with_suggestions
from daemon.core.command_words import start_command
from daemon.core.errors import FileAccessError, NotListeningError
from daemon.core.short_ids import is_part
from daemon.systemd.service import unit_of
from schema.errors import ClawbusError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.api.client import ControlClient
    from daemon.config.models import Config

P = ParamSpec("P")
Form = Literal["text", "wide", "json"]

JsonFlag = Annotated[
    bool | None,
    typer.Option("--json/--no-json", " /--pretty", help="One JSON envelope, or text. Default: text, in a pipe too."),
]
OutputOption = Annotated[
    Form | None,
    typer.Option("--output", "-o", help="json is --json; wide: text that no width cuts or wraps. Or $CLAWBUS_OUTPUT."),
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration file. Default: $CLAWBUS_CONFIG, ./clawbus.toml, /etc/clawbus/clawbus.toml.",
    ),
]
DataFlag = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The data folder, instead of the configured one.")
]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected failure.")]


_OURS: Final = re.compile(r"^clawbus(?= )")  # the command itself, not a path of that name
_CHAIN: Final = " && "
_OUTPUT: Final = "CLAWBUS_OUTPUT"
ID_PARAMETERS: Final = frozenset({"message", "identity", "letter", "letters", "answers", "question"})
_MAY_BE_EMPTY: Final = frozenset({"text", "reason"})
_RUN: Final = start_command(None)
LOOK: Final = (NextAction("clawbus logs -n 50", "what it does instead"),)
SILENT_FIX: Final = (
    "Do not start a second one. A daemon that is starting, or that lost its control socket, answers within seconds."
    " Check that control.socket is the one it was started with; otherwise restart it."
)


@dataclass(frozen=True, slots=True)
class Globals:
    """The options that every command takes, in both places."""

    form: Form | None = None
    config: Path | None = None
    data: Path | None = None
    debug: bool = False

    @classmethod
    def given(
        cls, json: bool | None, output: Form | None, config: Path | None, data: Path | None, *, debug: bool
    ) -> Globals:
        """Return the options of one place. Raise a usage error where --json and --output say different things."""
        if json is not None and output is not None and json != (output == "json"):
            raise typer.BadParameter(f"--output {output} and {'--json' if json else '--no-json'} exclude each other.")
        form: Form | None = output
        if form is None and json is not None:
            form = "json" if json else "text"
        return cls(form, config, data, debug)

    def with_form(self) -> Globals:
        """Return these options with the environment's form where none was given. Raise a usage error for an unknown one."""
        return self if self.form is not None else replace(self, form=_form_of_environment())

    def over(self, outer: Globals) -> Globals:
        """Return these options, with those given before the subcommand in place of missing ones."""
        return Globals(
            self.form or outer.form,
            self.config or outer.config,
            self.data or outer.data,
            self.debug or outer.debug,
        )


@dataclass
class Invocation:
    """One run of one command."""

    command: str
    options: Globals = field(default_factory=Globals)
    context: Any = None  # of the command line's parser, where it was read by one

    @property
    def json(self) -> bool:
        """Whether to answer with an envelope."""
        return self.options.form == "json"

    @property
    def config_file(self) -> Path | None:
        """The file that `config` reads; None when there is none."""
        from daemon.config.sources import find_config  # noqa: PLC0415

        return find_config(self.options.config)

    @cached_property
    def config(self) -> Config:
        """The checked configuration. Raises ConfigError."""
        from daemon.config.models import load_config  # noqa: PLC0415

        return load_config(self.config_file, data_dir=self.options.data, warn=self._warn)

    @staticmethod
    def _warn(fault: str) -> None:
        progress(f"warning: {fault.rstrip('.')}; `clawbus serve` refuses it")

    @cached_property
    def strict_config(self) -> Config:
        """`config`, for who starts the daemon: a variable that is no key is refused. Raises ConfigError."""
        from daemon.config.models import load_config  # noqa: PLC0415

        return load_config(self.config_file, data_dir=self.options.data)

    @cached_property
    def unit(self) -> str | None:
        """The systemd unit that runs the daemon of this data folder, or None."""
        try:
            return unit_of(self.config.data_dir)
        except ClawbusError:  # a configuration that cannot be read names no folder
            return None

    def here(self, command: str) -> str:
        """Return the command with the places that this one was given, so that it can be copied as it stands."""
        return _in_place(command, self.options)

    def client(self, *, answer_s: float = 30.0) -> ControlClient:
        """Return a client of the configured daemon; the caller closes it. It waits `answer_s` seconds for an answer."""
        from daemon.api.client import ControlClient  # noqa: PLC0415

        return ControlClient(self.config.control_socket, answer_s=answer_s)

    def silent_daemon(self) -> str | None:
        """Return a sentence when a process holds the data folder though no daemon answers, else None."""
        from daemon.store.data_folder import live_holder  # noqa: PLC0415

        holder = live_holder(self.config.data_dir)
        if holder is None:
            return None
        return (
            f"process {holder.pid} holds {self.config.data_dir} since {holder.since}"
            f" but does not answer on {self.config.control_socket}."
        )

    def emit(self, value: object) -> None:
        """One line of JSON of a stream (`--follow`)."""
        output = Output()
        output.write(to_json(value) + "\n")
        output.flush()

    def console(self) -> Console:
        """Where people read."""
        from daemon.cli.present import make_console  # noqa: PLC0415

        return make_console(wide=self.options.form == "wide")


def add(
    app: typer.Typer, name: str, function: Callable[Concatenate[Invocation, P], Outcome], *, path: str = ""
) -> None:
    """Register a command. Its signature becomes: context, its own parameters, the global options."""
    full = f"{path} {name}".strip()

    def run(ctx: typer.Context, **values: Any) -> None:
        if full != "serve":
            release()
        options = Globals.given(
            values.pop("json"),
            values.pop("output"),
            values.pop("config"),
            values.pop("data"),
            debug=values.pop("debug"),
        ).over(ctx.find_object(Globals) or Globals())
        invocation = Invocation(full, options.with_form(), ctx)
        given = {name: _not_empty(name, _as_text(name, value)) for name, value in values.items()}

        def work() -> Outcome:
            return function(invocation, **{name: _whole(invocation, name, value) for name, value in given.items()})  # pyright: ignore[reportCallIssue]

        outcome = with_suggestions(lambda: invocation.config.data_dir, _outcome(invocation, work), given, ID_PARAMETERS)
        code = finish(invocation, outcome)
        if code:
            raise typer.Exit(code)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter("json", keyword, default=None, annotation=JsonFlag),
        inspect.Parameter("output", keyword, default=None, annotation=OutputOption),
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFlag),
        inspect.Parameter("data", keyword, default=None, annotation=DataFlag),
        inspect.Parameter("debug", keyword, default=False, annotation=DebugFlag),
    ]
    parameters = [context, *(one.replace(kind=keyword) for one in own), *shared]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = function.__doc__
    app.command(name)(run)


def add_group(app: typer.Typer, group: typer.Typer, name: str) -> None:
    """Register a group of commands, which takes the global options as well: before, between and after the names."""

    @group.callback(invoke_without_command=False)
    def options(
        ctx: typer.Context,
        json: JsonFlag = None,
        output: OutputOption = None,
        config: ConfigFlag = None,
        data: DataFlag = None,
        debug: DebugFlag = False,
    ) -> None:
        ctx.obj = Globals.given(json, output, config, data, debug=debug).over(ctx.find_object(Globals) or Globals())

    app.add_typer(group, name=name)


def _outcome(invocation: Invocation, work: Callable[[], Outcome]) -> Outcome:
    try:
        return work()
    except ClawbusError as error:
        problem = problem_of(error)
        if isinstance(error, NotListeningError) and (silent := invocation.silent_daemon()) is not None:
            return Outcome(problem=replace(problem, message=silent, fix=SILENT_FIX), next_actions=LOOK)
        if isinstance(error, NotListeningError) and invocation.unit is not None:
            fix = f"Start it with `{start_command(invocation.unit)}`; `clawbus logs -n 50` says why it ended."
            return Outcome(problem=replace(problem, fix=fix), next_actions=LOOK)
        return Outcome(problem=problem, next_actions=_after(problem.code))
    except (typer.Exit, typer.Abort, typer.TyperException, OutputLostError):
        raise
    except Exception as error:  # noqa: BLE001 - the last place that can tell what went wrong
        if invocation.options.debug:
            progress(*traceback.format_exc().rstrip().split("\n"))
        if isinstance(error, OSError):
            return Outcome(problem=problem_of(FileAccessError.of(error)))
        return Outcome(
            problem=Problem(
                "INTERNAL", f"{type(error).__name__}: {error}", "Run it again with --debug and report that."
            )
        )


def _after(code: str) -> tuple[NextAction, ...]:
    if code == "DAEMON_DOWN":
        return (NextAction(_RUN, "start the daemon"), NextAction("clawbus logs -n 50", "why it ended"))
    if code in ("UNKNOWN_SESSION", "UNKNOWN_MESSAGE"):
        return (NextAction("clawbus session list", "list the sessions"),)
    if code == "UNKNOWN_AGENT":
        return (NextAction("clawbus agent list", "list the agents"),)
    return ()


def finish(invocation: Invocation, outcome: Outcome) -> int:
    """Print the outcome the way it was asked for; returns the exit code."""
    if outcome.silent:
        return outcome.code
    outcome = _as_started(invocation, outcome)
    outcome = replace(outcome, next_actions=tuple(_same_place(one, invocation.options) for one in outcome.next_actions))
    unseen: OutputLostError | None = None
    try:
        if invocation.json:
            invocation.emit(envelope(invocation.command, outcome))
        elif outcome.text is not None:
            Output().write(f"{outcome.text}\n")
            Output().flush()
        elif outcome.people is not None:
            outcome.people(invocation.console())
            Output().flush()
    except OutputLostError as error:
        unseen = error
    if not invocation.json:
        _show_end(outcome)
    if unseen is None:
        return outcome.code
    # The answer may name what was accepted: it is said where there still is a place to say it.
    return lost(unseen, envelope(invocation.command, outcome), outcome.code)


def _as_started(invocation: Invocation, outcome: Outcome) -> Outcome:
    """Return the outcome with systemd's command for the start where a unit runs the daemon, not one in a terminal."""
    problem, steps = outcome.problem, outcome.next_actions
    in_fix = problem is not None and f"`{_RUN}`" in problem.fix and "systemctl" not in problem.fix
    if not (in_fix or any(one.command == _RUN for one in steps)) or invocation.unit is None:
        return outcome
    start = start_command(invocation.unit)
    if problem is not None and in_fix:
        problem = replace(problem, fix=problem.fix.replace(f"`{_RUN}`", f"`{start}`"))
    steps = tuple(replace(one, command=start) if one.command == _RUN else one for one in steps)
    return replace(outcome, problem=problem, next_actions=steps)


def _same_place(action: NextAction, options: Globals) -> NextAction:
    return NextAction(_in_place(action.command, options), action.description)


def _in_place(command: str, options: Globals) -> str:
    """Add the options that say which installation is meant to each command of ours in a chain."""
    if _CHAIN in command:
        return _CHAIN.join(_in_place(one, options) for one in command.split(_CHAIN))
    place = ""
    if options.config is not None and "--config" not in command:
        place += f" --config {shlex.quote(str(options.config))}"
    if options.data is not None and "--data" not in command and "--config" not in command:
        place += f" --data {shlex.quote(str(options.data))}"
    return _OURS.sub(lambda found: found.group() + place, command)


def _show_end(outcome: Outcome) -> None:
    if outcome.problem is not None:
        progress(f"error: {outcome.problem.message}", f"fix: {outcome.problem.fix}")
    if not outcome.steps_shown:
        progress(*(f"next: {action.command}  ({action.description})" for action in outcome.next_actions))


def _as_text(name: str, value: object) -> object:
    """Return an argument as Unicode. Paths stay as they are: a file's name is bytes. Raise a usage error.

    In a locale without UTF-8 Python keeps what it cannot decode as surrogates; the bytes behind them may be UTF-8.
    """
    if isinstance(value, list):
        return [_as_text(name, one) for one in cast("list[object]", value)]
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(value).decode()
        except UnicodeError:
            where = name.replace("_", "-")
            raise typer.BadParameter(
                f"the bytes of {value!r} are not UTF-8 text ({where}). Convert it first, for example with `iconv -t UTF-8`."
            ) from None
    return value


def _whole(invocation: Invocation, name: str, value: object) -> object:
    """Return the ids that short ones mean, for a parameter that takes ids. Raise AmbiguousIdError."""
    if name not in ID_PARAMETERS:
        return value
    if isinstance(value, list):
        return [_whole(invocation, name, one) for one in cast("list[object]", value)]
    message, at, incarnation = value.partition("@") if isinstance(value, str) else ("", "", "")
    if not is_part(message):
        return value
    from daemon.inspect.central_reading import read_central  # noqa: PLC0415
    from daemon.inspect.finding import whole_id  # noqa: PLC0415

    data_dir = invocation.config.data_dir
    return f"{whole_id(data_dir, read_central(data_dir).known(), message)}{at}{incarnation}"


def _not_empty(name: str, value: object) -> object:
    """Return an argument that names something. Raise a usage error for an empty one: an unset variable of a shell."""
    words = cast("list[object]", value if isinstance(value, list) else [value])
    if name not in _MAY_BE_EMPTY and any(isinstance(word, str) and not word.strip() for word in words):
        raise typer.BadParameter(f"{name.rstrip('_').replace('_', '-')} is empty (is a variable empty?).")
    return words if isinstance(value, list) else value


def wants_json(arguments: Sequence[str]) -> bool:
    """How to report that the arguments could not be read: what they ask for as far as that can be told."""
    options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for at, option in reversed(list(enumerate(options))):
        if option in ("--json", "--no-json", "--pretty"):
            return option == "--json"
        if option.startswith(("-o", "--output")):
            named = options[at + 1] if option in ("-o", "--output") and at + 1 < len(options) else option
            return named.removeprefix("--output").removeprefix("-o").removeprefix("=") == "json"
    return os.environ.get(_OUTPUT) == "json"


def _form_of_environment() -> Form:
    """Return the form that CLAWBUS_OUTPUT names, else text. Raise a usage error for another word."""
    named = os.environ.get(_OUTPUT, "text")
    for form in cast("tuple[Form, ...]", get_args(Form)):
        if named == form:
            return form
    raise typer.BadParameter(f"the environment variable {_OUTPUT} is {named!r}: use text, wide or json.")
