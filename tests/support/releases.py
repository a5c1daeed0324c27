"""Releases without an environment: the folders and digests are real, the packages a few lines long."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from daemon.core.release import FILES_NAME, MANIFEST_NAME, Manifest, listing_digest, listing_text
from daemon.deploy.releases import schema_versions
from daemon.runtimes.image_source import source_digest
from daemon.workers.source import hash_files, site_of

_PACKAGES: Final = ("container_runner", "schema", "daemon")


def small_release(
    root: Path, text: str = "one", *, made_at: str = "2026-01-01T00:00:00.000Z", images: dict[str, str] | None = None
) -> Path:
    """A release whose packages hold `text`; returns its folder, `<root>/releases/<id>`."""
    making = root / "releases" / f".making-{text}"
    site = making / "lib" / "python3.11" / "site-packages"
    for package in _PACKAGES:
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text(f"TEXT = {text!r}\n")
    manifest = Manifest(
        "0.1.0", "3.11.2", source_digest(site), listing_digest(hash_files(making)), made_at,
        {"clawbus": "0.1.0"}, images or {}, schema_versions(),
    )  # fmt: skip
    (making / MANIFEST_NAME).write_text(json.dumps(manifest.as_json()))
    (making / FILES_NAME).write_text(listing_text(hash_files(making)))
    return making.rename(making.with_name(manifest.short))


def variant(
    release: Path, edit: str = "", *, file: str = "daemon/cli/version.py", manifest: Mapping[str, Any] | None = None
) -> Path:
    """Another release beside a real one: the same files, linked, but for one, to whose end `edit` is added.

    `manifest` are fields of its manifest that differ.
    """
    changes = manifest or {}
    making = release.with_name(f".making-{abs(hash((edit, file, str(changes))))}")
    shutil.copytree(release, making, symlinks=True, copy_function=os.link)
    for folder, _, _ in os.walk(making):
        Path(folder).chmod(0o755)
    changed = next(making.rglob(f"site-packages/{file}"))
    text = changed.read_text(encoding="utf-8")
    changed.unlink()
    changed.write_text(f"{text}\n{edit or '# another release'}\n", encoding="utf-8")
    old = json.loads((release / MANIFEST_NAME).read_text(encoding="utf-8"))
    del old["release"]
    files = {name: path for name in (MANIFEST_NAME, FILES_NAME) if (path := making / name)}
    for path in files.values():
        path.unlink()
    site = site_of(making)
    digests = {"source_digest": source_digest(site), "tree_digest": listing_digest(hash_files(making))}
    made = Manifest(**{**old, **digests, **changes})
    files[FILES_NAME].write_text(listing_text(hash_files(making)), encoding="utf-8")
    files[MANIFEST_NAME].write_text(json.dumps(made.as_json()), encoding="utf-8")
    return making.rename(making.with_name(made.short))
