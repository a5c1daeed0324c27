"""The gate's sockets: what the host cannot do now is its own trouble, and passes."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from daemon.egress.sockets import listen_in
from schema.errors import HostTroubleError, StorageError
from schema.layout import GATE_SOCKET


@pytest.mark.parametrize(
    ("owner", "name", "number", "kind"),
    [
        (socket, "socket", errno.EMFILE, HostTroubleError),
        (os, "open", errno.ENFILE, HostTroubleError),
        (Path, "mkdir", errno.ENOSPC, StorageError),
        (Path, "chmod", errno.EROFS, StorageError),
    ],
)
def test_a_gate_that_cannot_listen_now_says_why_and_listens_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, kind: type[StorageError]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(kind, match=os.strerror(number)):
            listen_in(tmp_path / "gate")
    with listen_in(tmp_path / "gate"):
        assert (tmp_path / "gate" / GATE_SOCKET).is_socket()
