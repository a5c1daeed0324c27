"""[commands.NAME]: who may use a command of the bus, and commands of the operator's that become a message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from daemon.core.routing import Senders
from daemon.core.templates import TemplateError, parse
from daemon.core.user_commands import BuiltIn, CommandRule

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_VALUES: Final = frozenset(("arguments", "sender", "place", "thread"))


class CommandTable(BaseModel):
    """[commands.NAME]: one command that people may write as /NAME."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = None
    senders: Literal["anyone", "known", "admin", "owner"] = "known"

    @field_validator("text")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                unknown = sorted(parse(value).first_words - _VALUES)
            except TemplateError as error:
                raise ValueError(f"the template {error}") from error
            if unknown:
                raise ValueError(f"there is no field {{{unknown[0]}}}; the fields are {', '.join(sorted(_VALUES))}")
        return value

    def rule(self) -> CommandRule:
        """Return the command as the bus reads it."""
        return CommandRule(Senders(self.senders), parse(self.text) if self.text is not None else None)


def command_faults(tables: Mapping[str, CommandTable]) -> Iterator[str]:
    """Yield what is wrong with the names of commands, or with a table for its name."""
    for name, table in tables.items():
        if not _NAME.match(name):
            yield f"commands.{name}: a command's name is lower-case letters, digits, - and _, at most 32"
        elif (name in tuple(BuiltIn)) != (table.text is None):
            what = (
                "may have no text: the bus answers it"
                if name in tuple(BuiltIn)
                else "needs a text, which the agent gets"
            )
            yield f"commands.{name}: {what}"
