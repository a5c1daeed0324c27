"""Which user containers run as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.core.errors import ConfigError
from daemon.runtimes.users import UNPRIVILEGED, container_uid_gid, user_mounts


@pytest.mark.parametrize(("text", "expected"), [("1000", (1000, 1000)), ("1000:2000", (1000, 2000))])
def test_numbers_are_taken(text: str, expected: tuple[int, int]) -> None:
    assert container_uid_gid(text) == expected


def test_the_containers_user_has_an_entry_and_the_files_are_made_once(tmp_path: Path) -> None:
    passwd, group = user_mounts(tmp_path / "users", 1000, 2000)
    assert "agent:x:1000:2000:agent:/workspace/home:/bin/sh" in passwd.source.read_text().splitlines()
    assert "agent:x:2000:" in group.source.read_text().splitlines()
    assert (passwd.target, group.target, passwd.read_only, group.read_only) == ("/etc/passwd", "/etc/group", True, True)
    before = passwd.source.stat().st_ino
    passwd.source.write_text("something else")
    assert user_mounts(tmp_path / "users", 1000, 2000) == (passwd, group)
    assert "agent:x:1000" in passwd.source.read_text()
    assert passwd.source.stat().st_ino != before, "a new file, so that a running container keeps what it has mounted"


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
