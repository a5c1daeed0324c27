"""Reads what is installed: a release's files and manifest, and from which release this process was started."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import Final

from daemon.core.deploy_errors import ReleaseInvalidError, SourceOutsideError
from daemon.core.release import (
    FILES_NAME,
    MANIFEST_NAME,
    Changes,
    Manifest,
    compare_files,
    listing_digest,
    read_listing,
    read_manifest,
)
from daemon.core.slots import SLOTS
from daemon.runtimes.image_source import source_digest
from schema.frozen import frozen
from schema.os_faults import host_error, passes

RELEASES: Final = "releases"
LINKS: Final = "slots"
_FIRST_SLOT: Final = (
    "No slot has a release yet: `clawbus release make`, `clawbus release link blue RELEASE`, then `systemctl enable --now"
    " clawbus@blue`. For development start with --developer."
)
_MAX_MANIFEST: Final = 1024**2


@frozen
class Origin:
    """Where this process comes from. `release` and `manifest` are None outside of a release."""

    prefix: Path
    manifest: Manifest | None
    source_digest: str
    slot: str | None = None

    @property
    def release(self) -> str | None:
        """The release's id, or None."""
        return self.manifest.release if self.manifest is not None else None

    def as_json(self) -> dict[str, str | None]:
        """Return the values that `status` shows."""
        return {
            "release": self.release,
            "source_digest": self.source_digest,
            "slot": self.slot,
            "prefix": str(self.prefix),
        }


def origin(slot: str | None = None) -> Origin:
    """Return this process's virtual environment and, if that is a release, its manifest. Raise ReleaseInvalidError."""
    prefix = Path(sys.prefix).resolve()
    manifest = manifest_in(prefix) if (prefix / MANIFEST_NAME).exists() else None
    return Origin(prefix, manifest, source_digest(), slot)


def check_origin(found: Origin, root: str, *, developer: bool) -> None:
    """Raise SourceOutsideError if this process runs outside the releases below `root`. Without a `root`, allow any place."""
    if not root or developer:
        return
    folder = (Path(root) / RELEASES).resolve()
    if found.manifest is None or found.prefix.parent != folder:
        linked = any(os.path.lexists(Path(root) / LINKS / slot) for slot in SLOTS)
        raise SourceOutsideError(
            f"deploy.root is {root}, and this clawbus runs from {found.prefix}, not from a release in {folder}.",
            hint=None if linked else _FIRST_SLOT,
        )


def manifest_in(release: Path) -> Manifest:
    """Return the manifest of a release's folder. Raise ReleaseInvalidError, and StorageError for what this host cannot do now."""
    path = release / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            return read_manifest(file.read(_MAX_MANIFEST), str(path))
    except OSError as error:
        _raise_passing(error, path)
        raise ReleaseInvalidError(f"{path} cannot be read: {error.strerror}.") from error


def recorded_files(release: Path, manifest: Manifest) -> dict[str, str]:
    """Return {path: digest} of the release's files when it was made. Raise ReleaseInvalidError or StorageError."""
    path = release / FILES_NAME
    try:
        found = read_listing(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        _raise_passing(error, path)
        raise ReleaseInvalidError(f"{path} cannot be read: {error.strerror}.") from error
    if listing_digest(found) != manifest.tree_digest:
        raise ReleaseInvalidError(f"{path} was edited: it does not have the digest in {MANIFEST_NAME}.")
    return found


def changes_in(release: Path, manifest: Manifest) -> Changes:
    """Hash every file of a release, and compare it with the record. Takes tenths of a second.

    Raise ReleaseInvalidError or StorageError.
    """
    return compare_files(recorded_files(release, manifest), hash_files(release))


def hash_files(release: Path) -> dict[str, str]:
    """Return {path: digest} of the release's files, except its manifest and listing. A link's digest is that of its target's path.

    Raise StorageError: a file that this host cannot read now is not a changed one.
    """
    found: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        _raise_passing(error, release)

    for folder, _, names in os.walk(release, onerror=unreadable):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(release).as_posix()
            if relative not in (MANIFEST_NAME, FILES_NAME):
                found[relative] = _digest(path)
    return found


def _digest(path: Path) -> str:
    """Return a file's digest. A file that is not readable gets the digest of its error, so that it counts as changed."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return hashlib.sha256(b"link " + os.fsencode(path.readlink())).hexdigest()
        if not stat.S_ISREG(status.st_mode):
            return hashlib.sha256(b"special").hexdigest()  # a fifo is not opened
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _raise_passing(error, path)
        return hashlib.sha256(f"error {error.errno}".encode()).hexdigest()


def _raise_passing(error: OSError, path: Path) -> None:
    """Raise StorageError for what this host cannot do now, which says nothing about the release."""
    if passes(error):
        raise host_error(error, f"{path} cannot be read") from error


def digest_of_source(release: Path) -> str:
    """Return the digest of a release's runner and schema, as in an image's label. Raise ReleaseInvalidError."""
    return source_digest(site_of(release))


def site_of(release: Path) -> Path:
    """Return a release's site-packages. Raise ReleaseInvalidError."""
    for path in sorted((release / "lib").glob("python3.*/site-packages")):
        return path
    raise ReleaseInvalidError(f"{release} has no lib/python3.*/site-packages.")
