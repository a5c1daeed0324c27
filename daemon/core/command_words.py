"""How a session is named in a command that is printed for somebody to copy. Pure."""

from __future__ import annotations

import shlex

from schema.ids import is_plain


def two_words(agent: str, session: str) -> str:
    """`AGENT SESSION`; one quoted word where the session's name would be an option or needs quoting."""
    return f"{agent} {session}" if is_plain(session) else one_word(agent, session)


def one_word(agent: str, session: str) -> str:
    """`AGENT/SESSION`, quoted where a shell needs that."""
    return shlex.quote(f"{agent}/{session}")
