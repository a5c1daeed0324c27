"""Short forms of ids, for tables of 80 columns: the random end of an id that the bus made. Pure.

Only ids that the bus made are shortened, and only they are found by a part: an id that a sender chose stays whole, so that no
part of one ever means another message.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

SHOWN: Final = 8  # 40 random bits
_LEAST: Final = 6
_LETTERS: Final = "[0-9A-HJKMNP-TV-Z]"
_WHOLE: Final = re.compile(rf"({_LETTERS}{{26}})((?:\+r\d+)*)")
_PART: Final = re.compile(rf"{_LETTERS}{{{_LEAST},25}}(?:\+r\d+)*")
_QUESTION: Final = re.compile(r"q-[a-z2-7]{16}")
_BEGINNING: Final = re.compile(rf"q-[a-z2-7]{{{_LEAST},15}}")  # of a question's id


def is_part(text: str) -> bool:
    """Return whether a text may be a part of an id that the bus made."""
    return _PART.fullmatch(text) is not None or _BEGINNING.fullmatch(text) is not None


def means(part: str, identity: str) -> bool:
    """Return whether `part` is the beginning or the end of an id that the bus made. `+rN` of a requeued message belongs to the end.

    Of a question only the beginning counts, `q-` included.
    """
    if _QUESTION.fullmatch(identity) is not None:
        return identity.startswith(part)
    made = _WHOLE.fullmatch(identity)
    return made is not None and (identity.endswith(part) or identity.startswith(part))


def shortened(identities: Iterable[str]) -> list[str]:
    """Return the ids' short forms; the id itself where it has none, or where another one has the same.

    A run's id, MESSAGE@INCARNATION, has both its parts shortened.
    """
    whole = list(identities)
    count = Counter(_short_run(one) for one in set(whole))
    return [short if count[short := _short_run(one)] == 1 else one for one in whole]


def _short_run(identity: str) -> str:
    message, at, incarnation = identity.rpartition("@")
    return f"{_short(message)}@{_short(incarnation)}" if at else _short(identity)


def _short(identity: str) -> str:
    made = _WHOLE.fullmatch(identity)
    return identity if made is None else made.group(1)[-SHOWN:] + made.group(2)
