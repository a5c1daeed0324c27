"""Registers a function as a command: parses its arguments and the global options, runs it and finishes its outcome.

A command is a function `(Invocation, its own options) -> Outcome`. It never prints JSON, never exits and never catches
what it cannot explain.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import typer

from daemon.cli.arguments import ID_PARAMETERS, checked, with_full_ids, words_of
from daemon.cli.envelope import Outcome
from daemon.cli.finish import finish, outcome_of
from daemon.cli.global_options import ConfigFlag, DataFlag, DebugFlag, Globals, JsonFlag, OutputOption, PagerFlag
from daemon.cli.invocation import Invocation
from daemon.cli.process_start import release
from daemon.cli.suggestions import with_suggestions

P = ParamSpec("P")


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
            no_pager=values.pop("no_pager"),
        ).over(ctx.find_object(Globals) or Globals())
        invocation = Invocation(full, options.with_form(), ctx)
        given = checked(values, words_of(ctx.command.params))

        def work() -> Outcome:
            return function(invocation, **with_full_ids(invocation, given))  # pyright: ignore[reportCallIssue]

        outcome = outcome_of(invocation, work)
        code = finish(invocation, with_suggestions(lambda: invocation.place.data_dir, outcome, given, ID_PARAMETERS))
        if code:
            raise typer.Exit(code)

    parameters = _parameters(function)
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = function.__doc__
    app.command(name)(run)


def _parameters(function: Callable[..., Outcome]) -> list[inspect.Parameter]:
    """Return what the parser reads: the context, the function's own parameters, the global options."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter("json", keyword, default=None, annotation=JsonFlag),
        inspect.Parameter("output", keyword, default=None, annotation=OutputOption),
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFlag),
        inspect.Parameter("data", keyword, default=None, annotation=DataFlag),
        inspect.Parameter("debug", keyword, default=False, annotation=DebugFlag),
        inspect.Parameter("no_pager", keyword, default=False, annotation=PagerFlag),
    ]
    return [context, *(one.replace(kind=keyword) for one in own), *shared]


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
        no_pager: PagerFlag = False,
    ) -> None:
        ctx.obj = Globals.given(json, output, config, data, debug=debug, no_pager=no_pager).over(
            ctx.find_object(Globals) or Globals()
        )

    app.add_typer(group, name=name)
