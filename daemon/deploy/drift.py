"""Compares what is installed, recorded, built and running: every drift of a host, and the repair of what does not serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.config.models import Config
from daemon.core.deploy_errors import ReleaseInvalidError
from daemon.core.errors import RuntimeUnavailableError
from daemon.core.release import Drift, Running, drift_of_daemon, drift_of_images, drift_of_release
from daemon.deploy.images import look_at_images
from daemon.deploy.releases import Release, Releases
from daemon.workers.source import Origin, digest_of_source
from schema.errors import StorageError
from schema.frozen import frozen


@frozen
class SourceReport:
    """Which release runs or would run, each drift, and what could not be checked.

    `unchecked` belongs to what serves and may hide a drift. `absent` is what is not there to be compared: no daemon, or a
    command that runs from elsewhere.
    """

    release: str | None
    drifts: tuple[Drift, ...]
    unchecked: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the command's result."""
        return {
            "release": self.release,
            "drift": [
                {"what": one.what, "where": one.where, "expected": one.expected, "found": one.found,
                 "repairable": one.repairable}
                for one in self.drifts
            ],
            "unknown": [*self.unchecked, *self.absent],
        }  # fmt: skip


def running_of(live: Mapping[str, Any] | None) -> Running | None:
    """Return what a daemon's status says of its source; None without a daemon."""
    if live is None:
        return None
    said: Mapping[str, Any] = live.get("source") or {}
    return Running(said.get("release"), said.get("source_digest"), said.get("slot"))


def check_release(config: Config, releases: Releases, release: Release) -> tuple[list[Drift], list[str]]:
    """Compare one release with its manifest, its files and its images. Return its drifts and what could not be checked."""
    manifest = release.manifest
    if manifest is None:
        return [Drift("manifest", release.short, release.fault or "no manifest", str(release.path))], []
    unknown: list[str] = []
    try:
        changes = releases.changes(release, manifest)
        found = drift_of_release(manifest, changes, digest_of_source(release.path), str(release.path))
    except ReleaseInvalidError as error:
        found = [Drift("manifest", release.short, str(error), str(release.path))]
    except StorageError as error:
        found = []
        unknown.append(f"files: {error}")
    try:
        found += drift_of_images(manifest, look_at_images(config, manifest.images.values()))
    except RuntimeUnavailableError as error:
        unknown.append(f"images: {error}")
    return found, unknown


def report(config: Config, origin: Origin, live: Mapping[str, Any] | None) -> SourceReport:
    """Compare everything. `live` is the running daemon's status, None without one."""
    releases = Releases(config.deploy.root)
    running = running_of(live)
    drifts: list[Drift] = []
    unchecked: list[str] = []
    absent: list[str] = []
    slots, names = releases.slots(), releases.names()
    runs = running.release if running is not None else None
    serving = [one.short for one in releases.list() if runs is not None and one.manifest_id == runs]
    for name in dict.fromkeys([*slots.values(), *serving]):  # a daemon may serve from a release without a slot
        if name in names:
            found, not_known = check_release(config, releases, releases.find(name))
            drifts += found
            unchecked += not_known
    if running is not None:
        drifts += _of_daemon(releases, running, slots)
    named = {one.where for one in drifts if one.what == "slot"}
    drifts += [
        Drift("slot", f"a release in {releases.folder}", f"a link to {name}", slot)
        for slot, name in slots.items()
        if name not in names and slot not in named
    ]
    if live is None and not slots:
        unchecked.append("nothing was compared: no daemon runs, and no slot points at a release")
    elif live is None:
        absent.append("daemon: none runs")
    if origin.manifest is None:
        absent.append(f"this command runs from {origin.prefix}, not from a release")
    return SourceReport(runs, tuple(drifts), tuple(dict.fromkeys(unchecked)), tuple(absent))


def _of_daemon(releases: Releases, running: Running, slots: Mapping[str, str]) -> list[Drift]:
    if running.release is None:
        return [Drift("daemon", f"a release in {releases.folder}", "started from elsewhere", running.slot or "")]
    by_id = {one.manifest.release: one.manifest for one in releases.list() if one.manifest is not None}
    manifest = by_id.get(running.release)
    if manifest is None:
        return [Drift("daemon", "a release that is here", running.release[:12], running.slot or "")]
    found = drift_of_daemon(manifest, running)
    if running.slot is not None and slots.get(running.slot) != manifest.short:
        found.append(Drift("slot", manifest.short, slots.get(running.slot, "no link"), running.slot, repairable=True))
    return found


def repair(releases: Releases, found: SourceReport, running: Running | None) -> list[str]:
    """Repair what does not serve, and return what was done, a sentence each. No process is restarted.

    A slot's link goes back to the release that runs in it. Raise OSError.
    """
    done: list[str] = []
    for drift in found.drifts:
        if drift.what == "slot" and drift.repairable and running is not None and running.slot == drift.where:
            releases.link(drift.where, releases.find(drift.expected))
            done.append(f"slot {drift.where} points at {drift.expected} again")
    return done
