"""Asks a slot's standby: what it is, and to probe its release. HTTP over the standby's own socket; blocks."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

_LOOK_S: Final = 2.0
_ANSWER_S: Final = 10.0  # seconds to wait for the answer in addition to the probe's own limit
_AGAIN_S: Final = 0.2


def standby_socket(data_dir: Path, slot: str) -> Path:
    """Return where the slot's standby listens."""
    return data_dir / "run" / f"standby-{slot}.sock"


def get_over(path: Path, target: str, timeout_s: float, method: str = "GET") -> dict[str, Any] | None:
    """Return the JSON object that a server on a unix socket answers, whatever its status; None without an answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as plain:
        plain.settimeout(timeout_s)
        connection = http.client.HTTPConnection("clawbus")
        try:
            plain.connect(str(path))
            connection.sock = plain
            connection.request(method, target)
            with connection.getresponse() as response:
                loaded: object = json.loads(response.read(1024**2))
        except (OSError, http.client.HTTPException, ValueError):
            return None
    return cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else None


class StandbyClient:
    """Calls to one slot's standby."""

    def __init__(self, data_dir: Path, slot: str) -> None:
        self._slot, self._path = slot, standby_socket(data_dir, slot)

    def look(self) -> dict[str, Any] | None:
        """Return {slot, release, process, since}; None when no standby answers."""
        return get_over(self._path, "/healthz", _LOOK_S)

    def why_absent(self, patience_s: float) -> str:
        """Return that no daemon answers in the slot; an empty text as soon as one does. Blocks for up to `patience_s`."""
        until = time.monotonic() + patience_s
        while self.look() is None:
            if time.monotonic() > until:
                return f"no daemon answers in slot {self._slot}"
            time.sleep(_AGAIN_S)
        return ""

    def rollback(self, by: str) -> dict[str, Any]:
        """Have it take the folder back, as no daemon serves; {ok, reason}."""
        found = get_over(self._path, f"/rollback?{urlencode({'by': by})}", _LOOK_S, "POST")
        return found if found is not None else {"ok": False, "reason": f"no daemon answers in slot {self._slot} either"}

    def probe(self, limit_s: float) -> dict[str, Any]:
        """Have it probe its release; {ok, reason, plain, interrupted}."""
        found = get_over(self._path, f"/probe?limit_s={limit_s:g}", limit_s + _ANSWER_S, "POST")
        return found if found is not None else {"ok": False, "reason": "the standby did not answer in time"}
