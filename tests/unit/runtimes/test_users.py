"""Which user containers run as."""

from __future__ import annotations

import os

import pytest

from daemon.core.errors import ConfigError
from daemon.runtimes.users import UNPRIVILEGED, container_uid_gid


@pytest.mark.parametrize(("text", "expected"), [("1000", (1000, 1000)), ("1000:2000", (1000, 2000))])
def test_numbers_are_taken(text: str, expected: tuple[int, int]) -> None:
    assert container_uid_gid(text) == expected


@pytest.mark.parametrize("text", ["0", "0:0", "root", "1000:staff", "-1", "1000:", " ", "1000:1000:1"])
def test_names_and_root_are_refused_by_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"docker\.user"):
        container_uid_gid(text)


@pytest.mark.parametrize(
    ("own", "expected"), [((1000, 100), (1000, 100)), ((0, 0), (UNPRIVILEGED, UNPRIVILEGED))], ids=["user", "root"]
)
def test_empty_is_the_daemons_own_but_never_root(
    monkeypatch: pytest.MonkeyPatch, own: tuple[int, int], expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: own[0])
    monkeypatch.setattr(os, "getgid", lambda: own[1])
    assert container_uid_gid("") == expected
