"""What every operator's verb is: one request, its JSON form, and its route in the control API.

A verb says what is wanted and does nothing. `maintenance/daemon_executor.py` carries it out in a running daemon,
`maintenance/offline.py` on the files while no daemon runs. Each noun has a file of verbs (`session_verbs.py` and so on), and
`commands.py` lists them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, ClassVar, Final

from daemon.core.errors import RequestRefusedError
from schema.frozen import frozen
from schema.ids import check_name, check_session

MAX_ID: Final = 255
_MAX_BY: Final = 200
_MAX_REASON: Final = 1000


@frozen
class Verb:
    """One request about one session. `by` and `reason` go into the history.

    Building one raises InvalidNameError or RequestRefusedError for values that no executor may see.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = MappingProxyType({"extra": "forbid", "strict": True})
    route: ClassVar[str]
    wait_s: ClassVar[float] = 60.0  # how long the answer may take beyond a moment

    agent: str
    session: str
    by: str = "operator"
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check what came from outside."""
        check_name("agent", self.agent)
        check_session(self.session)
        _check_record(self.by, self.reason)

    def as_json(self) -> dict[str, Any]:
        """Return the request's body."""
        return asdict(self)


@frozen
class HostVerb:
    """One request about the whole installation, not about a session. `by` and `reason` are recorded with the change."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = MappingProxyType({"extra": "forbid", "strict": True})
    route: ClassVar[str]
    wait_s: ClassVar[float] = 0.0

    by: str = "operator"
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check what came from outside."""
        _check_record(self.by, self.reason)

    def as_json(self) -> dict[str, Any]:
        """Return the request's body."""
        return asdict(self)


@frozen
class RowVerb(Verb):
    """A verb about one message, answer or dead letter of the session. One transaction in the session's inbound.db."""

    id: str = ""

    def __post_init__(self) -> None:
        """Check the id, too."""
        Verb.__post_init__(self)
        check_length("id", self.id, MAX_ID)


AnyVerb = Verb | HostVerb


def check_length(name: str, value: str, longest: int) -> None:
    """Raise RequestRefusedError for an empty text and one that is too long."""
    if not 0 < len(value) <= longest:
        raise RequestRefusedError(f"{name} must have between 1 and {longest} characters.")


def _check_record(by: str, reason: str | None) -> None:
    check_length("by", by, _MAX_BY)
    if reason is not None and len(reason) > _MAX_REASON:
        raise RequestRefusedError(f"reason is longer than {_MAX_REASON} characters.")
