"""An answer's id that several sessions have is refused with the code that every command gives."""

import pytest

from daemon.cli import delivery
from daemon.core.errors import AmbiguousIdError, UnknownMessageError


def test_an_answer_of_two_sessions_is_ambiguous_as_everywhere() -> None:
    answers = [{"agent": "echo", "session": name, "id": "a1"} for name in ("one", "two")]
    with pytest.raises(AmbiguousIdError, match="echo/one, echo/two"):
        delivery._only({"answers": answers}, "a1")
    assert delivery._only({"answers": answers[:1]}, "a1") == ("echo", "one")
    with pytest.raises(UnknownMessageError):
        delivery._only({"answers": []}, "a1")
