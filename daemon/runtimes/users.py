"""Decides which user a container's processes run as. The session store makes out/ and the agent folder writable for it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Final

from daemon.core.errors import ConfigError
from daemon.runtimes.protocol import Mount
from daemon.runtimes.workspace import folder_error
from schema.layout import CONTAINER_HOME

# The user that a daemon run by root gives its containers: "nobody" on Debian is 65534; this one owns nothing anywhere.
UNPRIVILEGED: Final = 65532

_HIGHEST: Final = 2**32 - 2  # chown(2) takes the highest number to mean "leave it as it is"
_USER: Final = re.compile(r"(\d{1,10})(?::(\d{1,10}))?\Z")


def container_uid_gid(config_user: str) -> tuple[int, int]:
    """Return (uid, gid) for `docker.user`. Empty means the daemon's own, or 65532:65532 when the daemon is root.

    Raise ConfigError for anything but "UID" or "UID:GID": names exist in an image, not here. Root is refused.
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


def user_mounts(folder: Path, uid: int, gid: int) -> tuple[Mount, Mount]:
    """Return the mounts of an /etc/passwd and an /etc/group that know the container's user as `agent`.

    An image knows none of the numbers that a daemon chooses, and programs such as git and ssh refuse to run for a user
    without an entry. The files are made in `folder` once. Raise DataFolderError or StorageError.
    """
    own = folder / f"{uid}-{gid}"
    users = ("root:x:0:0:root:/root:/bin/sh", "nobody:x:65534:65534:nobody:/nonexistent:/bin/false")
    texts = (
        ("passwd", "\n".join((*users, f"agent:x:{uid}:{gid}:agent:{CONTAINER_HOME}:/bin/sh\n"))),
        ("group", f"root:x:0:\nnogroup:x:65534:\nagent:x:{gid}:\n"),
    )
    try:
        own.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, text in texts:
            _write_once(own / name, text)
    except OSError as error:
        raise folder_error(own, error) from error
    return Mount(own / "passwd", "/etc/passwd", read_only=True), Mount(own / "group", "/etc/group", read_only=True)


def _write_once(path: Path, text: str) -> None:
    """Write the file, unless it has this text: containers have it mounted."""
    if path.is_file() and path.read_text(encoding="ascii", errors="replace") == text:
        return
    # The ids: a standby, a command or the start of another container may write the same file at the same time.
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    draft.write_text(text, encoding="ascii")
    draft.chmod(0o644)
    draft.replace(path)
