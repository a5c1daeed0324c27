"""Releases without an environment: the folders and digests are real, the packages a few lines long."""

import json
from pathlib import Path
from typing import Final

from daemon.core.release import FILES_NAME, MANIFEST_NAME, Manifest, listing_digest, listing_text
from daemon.deploy.releases import schema_versions
from daemon.runtimes.image_source import source_digest
from daemon.workers.source import hash_files

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
