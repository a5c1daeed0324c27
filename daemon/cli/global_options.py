"""The options that every command takes, before or after its name, and the form of output that they and $CLAWBUS_OUTPUT choose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal, cast, get_args

import typer

from schema.frozen import frozen

Form = Literal["text", "wide", "json"]
_OUTPUT: Final = "CLAWBUS_OUTPUT"
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
PagerFlag = Annotated[
    bool, typer.Option("--no-pager", help="Print long text directly, not in $CLAWBUS_PAGER, $PAGER or less.")
]


@frozen
class Globals:
    """The options that every command takes, in both places."""

    form: Form | None = None
    config: Path | None = None
    data: Path | None = None
    debug: bool = False
    no_pager: bool = False

    @classmethod
    def given(
        cls,
        json: bool | None,
        output: Form | None,
        config: Path | None,
        data: Path | None,
        *,
        debug: bool,
        no_pager: bool,
    ) -> Globals:
        """Return the options of one place. Raise a usage error where --json and --output say different things."""
        if json is not None and output is not None and json != (output == "json"):
            raise typer.BadParameter(f"--output {output} and {'--json' if json else '--no-json'} exclude each other.")
        form: Form | None = output
        if form is None and json is not None:
            form = "json" if json else "text"
        return cls(form, config, data, debug, no_pager)

    def with_form(self) -> Globals:
        """Return these options, with the form that CLAWBUS_OUTPUT names if none was given. Raise a usage error for an unknown one."""
        return self if self.form is not None else replace(self, form=_form_of_environment())

    def over(self, outer: Globals) -> Globals:
        """Return these options, with those given before the subcommand in place of missing ones."""
        return Globals(
            self.form or outer.form,
            self.config or outer.config,
            self.data or outer.data,
            self.debug or outer.debug,
            self.no_pager or outer.no_pager,
        )


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether arguments that cannot be parsed seem to ask for JSON, to report the usage error in that form."""
    options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for at, option in reversed(list(enumerate(options))):
        if option in ("--json", "--no-json", "--pretty"):
            return option == "--json"
        if option.startswith(("-o", "--output")):
            named = options[at + 1] if option in ("-o", "--output") and at + 1 < len(options) else option
            return named.removeprefix("--output").removeprefix("-o").removeprefix("=") == "json"
    return os.environ.get(_OUTPUT) == "json"


def _form_of_environment() -> Form:
    """Return the form that CLAWBUS_OUTPUT names, else text. Raise a usage error for any other value."""
    named = os.environ.get(_OUTPUT, "text")
    for form in cast("tuple[Form, ...]", get_args(Form)):
        if named == form:
            return form
    raise typer.BadParameter(f"the environment variable {_OUTPUT} is {named!r}: use text, wide or json.")
