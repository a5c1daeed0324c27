"""Defines what a release is and how sources are compared. Pure: reads no files.

A release is a folder with a virtual environment, `release.json` (the manifest) and `files.sha256` (every file's digest).
The manifest is written once. Its id is the digest of the rest of it, so an edited manifest is invalid.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Any, Final, cast

from daemon.core.deploy_errors import ReleaseInvalidError, UnknownReleaseError
from schema.frozen import frozen

MANIFEST_NAME: Final = "release.json"
FILES_NAME: Final = "files.sha256"
SHORT: Final = 12  # hexadecimal digits of the id that name the folder
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LINE: Final = re.compile(r"([0-9a-f]{64})  (.+)")
_NAMED: Final = 5  # changed files that a sentence names


@frozen
class Manifest:
    """What a release holds. `images` is {image name: image id}, empty with the process runtime. `made_at` is UTC text.

    `source_digest` is over runner and schema, as the image's label; `tree_digest` over every file of the environment;
    `schema_versions` is the version of each kind of file that this release writes.
    """

    daemon_version: str
    python: str
    source_digest: str
    tree_digest: str
    made_at: str
    packages: Mapping[str, str] = field(default_factory=dict[str, str])
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    schema_versions: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def release(self) -> str:
        """The id: sha256 of the rest."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()

    @property
    def short(self) -> str:
        """The folder's name."""
        return self.release[:SHORT]

    def as_json(self) -> dict[str, Any]:
        """Return the content of release.json."""
        return {"release": self.release, **asdict(self)}


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Return the manifest in a release.json. `where` names the file in errors. Raise ReleaseInvalidError."""
    try:
        loaded: object = json.loads(text)
        if not isinstance(loaded, dict):
            raise ReleaseInvalidError(f"{where} is not a JSON object.")
        found = dict(cast("Mapping[str, Any]", loaded))
        named = found.pop("release", None)
        manifest = Manifest(**found)
        right = manifest.release == named and all(
            _DIGEST.fullmatch(one) for one in (manifest.source_digest, manifest.tree_digest)
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ReleaseInvalidError(f"{where} is not a manifest: {error}.") from error
    if not right:
        raise ReleaseInvalidError(f"{where} was edited: its id is not the digest of its content.")
    return manifest


def find_release(wanted: str, known: Sequence[str]) -> str:
    """Return the one release whose id begins with `wanted` (both hexadecimal). Raise UnknownReleaseError."""
    fitting = [one for one in known if one.startswith(wanted[:SHORT])] if wanted else []
    if len(fitting) != 1:
        there = ", ".join(known) or "none"
        raise UnknownReleaseError(
            f"{'several releases begin' if fitting else 'no release begins'} with {wanted!r} (known: {there})."
        )
    return fitting[0]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# --- the files of a release


def listing_text(files: Mapping[str, str]) -> str:
    """Return files.sha256 for {path: digest}, in the form of sha256sum(1)."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))


def read_listing(text: str) -> dict[str, str]:
    """Return {path: digest} of a files.sha256. Skip malformed lines: the digest over the text detects them."""
    return {found[2]: found[1] for line in text.splitlines() if (found := _LINE.fullmatch(line)) is not None}


def listing_digest(files: Mapping[str, str]) -> str:
    """Return the tree digest: one over every path and digest."""
    return hashlib.sha256(listing_text(files).encode()).hexdigest()


@frozen
class Changes:
    """How a folder differs from its listing: paths, sorted."""

    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added)

    def __str__(self) -> str:
        parts = (("changed", self.changed), ("missing", self.missing), ("added", self.added))
        return "; ".join(f"{word}: {_some(paths)}" for word, paths in parts if paths) or "none"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


def compare_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> Changes:
    """Compare two {path: digest}. Bytecode that Python wrote does not count as an addition."""
    return Changes(
        changed=tuple(sorted(path for path, digest in found.items() if recorded.get(path, digest) != digest)),
        missing=tuple(sorted(recorded.keys() - found.keys())),
        added=tuple(sorted(path for path in found.keys() - recorded.keys() if "__pycache__/" not in path)),
    )


# --- drift


@frozen
class Drift:
    """One place where what is found is not what was recorded.

    `what`: files, manifest, source, image, slot, daemon, origin. `repairable`: `clawbus source --repair` ends it.
    """

    what: str
    expected: str
    found: str
    where: str = ""
    repairable: bool = False

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.what}{place}: expected {self.expected}, found {self.found}"


@frozen
class ImageFound:
    """An engine's answer about an image: its id and its label, or why it could not be inspected."""

    id: str | None = None
    label: str | None = None
    error: str | None = None


@frozen
class Running:
    """What a running daemon reports about itself (`live.source`); None for what it does not report."""

    release: str | None
    source_digest: str | None
    slot: str | None = None


def drift_of_release(manifest: Manifest, changes: Changes, source_digest: str, where: str) -> list[Drift]:
    """Compare a release's files with its own manifest."""
    found: list[Drift] = []
    if changes:
        found.append(Drift("files", f"the {manifest.short} that was installed", str(changes), where))
    if source_digest != manifest.source_digest:
        found.append(Drift("source", manifest.source_digest[:SHORT], source_digest[:SHORT], where))
    return found


def drift_of_images(manifest: Manifest, images: Mapping[str, ImageFound]) -> list[Drift]:
    """Compare the engine's images ({id: what was found}) with the release's. Names do not count: agents start by id."""
    found: list[Drift] = []
    for name, recorded in sorted(manifest.images.items()):
        image = images.get(recorded, ImageFound(error="not looked at"))
        if image.error is not None:
            found.append(Drift("image", recorded[:19], image.error, name))
        elif image.label != manifest.source_digest:
            label = (image.label or "no label")[:SHORT]
            found.append(Drift("image", f"label {manifest.source_digest[:SHORT]}", label, name))
    return found


def drift_of_daemon(manifest: Manifest, running: Running) -> list[Drift]:
    """Compare what the running daemon loaded with the release that it should be."""
    if running.release != manifest.release:
        return [Drift("daemon", manifest.short, (running.release or "no release")[:SHORT], running.slot or "")]
    if running.source_digest != manifest.source_digest:
        found = (running.source_digest or "none")[:SHORT]
        return [Drift("daemon", manifest.source_digest[:SHORT], found, running.slot or "")]
    return []
