"""Which user a container's processes run as. The session store makes out/ and the agent folder writable for it."""

from __future__ import annotations

import os
import re
from typing import Final

from daemon.core.errors import ConfigError

# The user that a daemon run by root gives its containers: "nobody" on Debian is 65534; this one owns nothing anywhere.
UNPRIVILEGED: Final = 65532

_HIGHEST: Final = 2**32 - 2  # chown(2) takes the highest number to mean "leave it as it is"
_USER: Final = re.compile(r"(\d{1,10})(?::(\d{1,10}))?\Z")


def container_uid_gid(config_user: str) -> tuple[int, int]:
    """(uid, gid) for `docker.user`: empty means the daemon's own, or 65532:65532 when the daemon is root.

    Raises ConfigError for anything but "UID" or "UID:GID": names exist in an image, not here. Root is refused.
    """
    if not config_user:
        uid = os.getuid()
        return (uid, os.getgid()) if uid != 0 else (UNPRIVILEGED, UNPRIVILEGED)
    match = _USER.match(config_user)
    if match is None:
        raise ConfigError(f"docker.user: {config_user!r} is not UID or UID:GID.", hint='Use numbers, e.g. "1000:1000".')
    uid = int(match[1])
    gid = int(match[2]) if match[2] is not None else uid
    if uid == 0 or gid == 0:
        raise ConfigError(
            "docker.user: agents do not run as root or in its group.", hint="Name other numbers, or leave it empty."
        )
    if max(uid, gid) > _HIGHEST:
        raise ConfigError(f"docker.user: {config_user!r} is above {_HIGHEST}.", hint="Name the numbers of a real user.")
    return uid, gid
