"""Makes, lists and prunes releases: folders `<root>/releases/<id>`, each a virtual environment that never changes again.

A release is a copy, file by file, of the environment that runs `release make`: clawbus and its dependencies.
It is made in a folder of another name and renamed when it is complete, so a release that has its name is whole. Its
launcher finds Python by its own place, because a virtual environment's scripts do not survive a rename.
"""

from __future__ import annotations

import compileall
import fcntl
import json
import os
import platform
import py_compile
import re
import shutil
import tempfile
import time
import venv
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Final

from daemon.core.deploy_errors import ReleaseInvalidError, ReleaseMakeError, ReleasesUnusedError, UnknownReleaseError
from daemon.core.release import FILES_NAME, MANIFEST_NAME, Changes, Manifest, find_release, listing_digest, listing_text
from daemon.core.slots import SLOTS
from daemon.deploy.running_releases import running_releases
from daemon.runtimes.image_source import package_folder, source_digest
from daemon.workers.source import LINKS, RELEASES, changes_in, hash_files, manifest_in, site_of
from schema.durable_files import sync_folder
from schema.frozen import frozen
from schema.migrate import VERSION, Role
from schema.os_faults import host_error, passes

_MAKING: Final = ".making-"
_RECENT_S: Final = 3600.0
_PACKAGES: Final = ("daemon", "container_runner", "schema")
_LAUNCHER: Final = """#!/bin/sh
# clawbus from exactly this release: no user site, no PYTHON* variables, no bytecode written.
here=$(dirname "$(readlink -f "$0")")
exec "$here/python" -I -B -m daemon.cli "$@"
"""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


@frozen
class Release:
    """A release on disk. `slots` are those that point at it; `fault` says why its manifest cannot be used."""

    path: Path
    manifest: Manifest | None
    slots: tuple[str, ...] = ()
    fault: str | None = None

    @property
    def short(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def manifest_id(self) -> str | None:
        """The whole id; None for one that cannot be used."""
        return self.manifest.release if self.manifest is not None else None


class Releases:
    """The releases of one root folder, and the two slots beside them."""

    def __init__(self, root: str | Path) -> None:
        if not str(root):
            raise ReleasesUnusedError("deploy.root is not set, so there are no releases.")
        self.root: Final = Path(root).absolute()
        self.folder: Final = self.root / RELEASES

    # --- reading

    def list(self) -> list[Release]:
        """Return every release, newest first. One that cannot be used has a `fault`."""
        slots = self.slots()
        found = [self._look(path, slots) for path in self._paths()]
        return sorted(found, key=lambda one: one.manifest.made_at if one.manifest is not None else "", reverse=True)

    def names(self) -> list[str]:
        """Return every release's folder name."""
        return [path.name for path in self._paths()]

    def find(self, wanted: str) -> Release:
        """Return the release whose id begins so. Raise UnknownReleaseError."""
        names = self.names()
        found = self._look(self.folder / find_release(wanted, names), self.slots())
        if found.manifest is not None and not found.manifest.release.startswith(wanted):
            raise UnknownReleaseError(f"no release begins with {wanted!r}; {found.manifest.release} is the nearest.")
        return found

    def usable(self, wanted: str) -> tuple[Release, Manifest]:
        """Return what `find` returns, with its manifest. Raise UnknownReleaseError or ReleaseInvalidError."""
        found = self.find(wanted)
        if found.manifest is None:
            raise ReleaseInvalidError(found.fault or f"{found.path} has no manifest.")
        return found, found.manifest

    def changes(self, release: Release, manifest: Manifest) -> Changes:
        """Compare every file with its digest."""
        return changes_in(release.path, manifest)

    def checked(self, release: Release) -> Release:
        """Return the release with a `fault` when its files are not what was installed. Takes some tenths of a second."""
        if release.manifest is None or release.fault is not None:
            return release
        try:
            changes = self.changes(release, release.manifest)
        except ReleaseInvalidError as error:
            return replace(release, fault=str(error))
        return replace(release, fault=str(changes)) if changes else release

    def slots(self) -> dict[str, str]:
        """Return {slot: folder name of its release}; a slot without a link is left out.

        A link that leads elsewhere is given as it is: what is there is no release, whatever its name. Raise StorageError.
        """
        found: dict[str, str] = {}
        for slot in SLOTS:
            link = self.slot_link(slot)
            try:
                text = os.readlink(link)  # noqa: PTH115 - the link's own text
            except OSError as error:
                if passes(error):
                    raise host_error(error, f"{link} cannot be read") from error
                continue
            target = Path(os.path.normpath(link.parent / text))
            found[slot] = target.name if _is_same(target.parent, self.folder) else text
        return found

    def slot_link(self, slot: str) -> Path:
        """Return the path of a slot's link."""
        return self.root / LINKS / slot

    def starts(self, slot: str) -> bool:
        """Return whether the slot points at a release that is there: its manifest and its Python. Raise StorageError."""
        name = self.slots().get(slot)
        if name is None or name not in self.names():
            return False
        whole = self._look(self.folder / name, {}).fault is None
        return whole and self.launcher(name).exists() and self.launcher(name).with_name("python").exists()

    def launcher(self, name: str) -> Path:
        """Return the command of the release in a folder of this name."""
        return self.folder / name / "bin" / "clawbus"

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keep other commands from moving links and from removing releases meanwhile: wait for theirs. Raise OSError."""
        try:
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # then there is nothing to move or to remove
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _paths(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (
                path for path in sorted(self.folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
            )

    def _look(self, path: Path, slots: Mapping[str, str]) -> Release:
        here = tuple(slot for slot, name in slots.items() if name == path.name)
        try:
            manifest = manifest_in(path)
        except ReleaseInvalidError as error:
            return Release(path, None, here, str(error))
        if manifest.short != path.name:
            return Release(path, None, here, f"{path} holds the release {manifest.short}.")
        return Release(path, manifest, here)

    # --- changing

    def link(self, slot: str, release: Release) -> None:
        """Point a slot at a release, in one step. A process that runs from the slot's former release continues to use it.

        Raise OSError.
        """
        link = self.slot_link(slot)
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{slot}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("..") / RELEASES / release.short)
        fresh.replace(link)
        sync_folder(link.parent)

    def make(self, draft: Manifest, progress: Callable[[str], None]) -> tuple[Release, bool]:
        """Make a release of what this process runs, and return it and whether it is new.

        `draft` has the images and the time; the rest is filled in. A release with the same files and images is not made
        twice. Raise ReleaseMakeError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.folder))
        except OSError as error:
            raise ReleaseMakeError(f"{error.filename or self.folder}: {error.strerror}.") from error
        try:
            making.chmod(0o755)
            manifest = _fill(making, draft, progress)
            return self._finish(making, manifest)
        except OSError as error:
            raise ReleaseMakeError(
                f"{error.filename2 or error.filename or making}: {error.strerror or error}."
            ) from error
        finally:
            remove_release(making)

    def _finish(self, making: Path, manifest: Manifest) -> tuple[Release, bool]:
        for known in self.list():
            same = known.manifest
            if same is not None and (same.tree_digest, same.images) == (manifest.tree_digest, manifest.images):
                self._refuse_changed(known)
                return known, False
        for name, text in ((MANIFEST_NAME, _json(manifest)), (FILES_NAME, listing_text(hash_files(making)))):
            with (making / name).open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        _make_read_only(making)
        os.sync()  # thousands of small files: one call, and none is missing after a power cut
        target = self.folder / manifest.short
        making.chmod(0o755)  # a folder that is renamed must be writable for its owner
        making.rename(target)
        target.chmod(0o555)
        sync_folder(self.folder)
        return self._look(target, {}), True

    def _refuse_changed(self, known: Release) -> None:
        """Raise ReleaseMakeError for a release whose files were changed since: it is not what was asked for."""
        path = self.folder / known.short
        if listing_digest(hash_files(path)) != (known.manifest.tree_digest if known.manifest else None):
            raise ReleaseMakeError(
                f"{known.short} has these files on record, and some were changed since.",
                hint=f"Remove {path} and make it again; if a slot uses it, deploy another release first.",
            )

    def prune(self, keep: int, needed: Iterable[str]) -> tuple[list[str], list[str]]:
        """Remove all releases but the newest `keep`, those of slots or in `needed`, and what runs. Return (removed, kept) names."""
        self._remove_unfinished()
        protected = {*self.slots().values(), *needed, *running_releases(self.folder)}
        found = self.list()
        newest = {one.short for one in [one for one in found if one.fault is None][:keep]}
        gone = [one for one in found if one.short not in protected | newest]
        for one in gone:
            aside = one.path.with_name(f"{_MAKING}gone-{one.short}")
            one.path.chmod(0o755)
            one.path.rename(aside)
            remove_release(aside)
        names = [one.short for one in gone]
        return names, [one.short for one in found if one.short not in names]

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"{_MAKING}*"):
            if not _is_recent(path):
                remove_release(path)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError as error:
        if passes(error):
            raise host_error(error, f"{one} cannot be looked at") from error
        return False


def remove_release(path: Path) -> None:
    """Remove a release's folder, whose folders may be read-only. Safe to repeat, and without a folder."""
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o755)
    shutil.rmtree(path, ignore_errors=True)


def schema_versions() -> dict[str, int]:
    """Return the version of each kind of file that this clawbus writes."""
    return {role.value: VERSION for role in Role}


def _is_recent(path: Path) -> bool:
    """Return whether another process may still be making it."""
    try:
        return time.time() - path.stat().st_mtime < _RECENT_S
    except OSError:
        return True


def _json(manifest: Manifest) -> str:
    return json.dumps(manifest.as_json(), indent=2, sort_keys=True) + "\n"


def _fill(making: Path, draft: Manifest, progress: Callable[[str], None]) -> Manifest:
    """Build the environment and return the manifest over it."""
    progress("virtual environment")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(making)
    for path in (making / "bin").iterdir():
        if not path.name.startswith("python"):
            path.unlink()  # activation scripts hold the folder's former name
    (making / "pyvenv.cfg").write_text(_without_command(making / "pyvenv.cfg"), encoding="utf-8")
    site = site_of(making)
    packages: dict[str, str] = {}
    distributions = closure("clawbus")
    progress(f"{len(distributions)} packages")
    for distribution in distributions:
        name = str(distribution.metadata["Name"])
        _copy_distribution(distribution, site)
        packages[name.lower()] = distribution.version
    for package in _PACKAGES:
        shutil.copytree(
            package_folder(package), site / package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    launcher = making / "bin" / "clawbus"
    launcher.write_text(_LAUNCHER, encoding="ascii")
    launcher.chmod(0o755)
    progress("bytecode")
    compileall.compile_dir(
        str(site), quiet=2, stripdir=str(making), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
    )
    return replace(
        draft,
        daemon_version=packages.get("clawbus", "unknown"),
        python=platform.python_version(),
        source_digest=source_digest(site),
        tree_digest=listing_digest(hash_files(making)),
        packages=packages,
        schema_versions=schema_versions(),
    )


def _without_command(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith("command"))


def closure(name: str) -> list[metadata.Distribution]:
    """Return a distribution and what it requires, as far as it is installed; of clawbus, its extras too."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, True)]
    while waiting:
        wanted, extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", wanted).lower()
        if key in found:
            continue
        try:
            distribution = metadata.distribution(wanted)
        except metadata.PackageNotFoundError:
            if wanted == name:
                raise ReleaseMakeError(f"{name} is not installed in this environment.") from None
            continue  # for another platform or Python
        found[key] = distribution
        for requirement in distribution.requires or ():
            match = _NAME.match(requirement)
            if match is not None and (extras or "extra ==" not in requirement):
                waiting.append((match[0], False))
    return [found[key] for key in sorted(found)]


def _copy_distribution(distribution: metadata.Distribution, site: Path) -> None:
    """Copy the files that lie in site-packages. Scripts and shared data are left out."""
    for file in distribution.files or ():
        parts = file.parts
        if ".." in parts or "__pycache__" in parts or file.is_absolute():
            continue
        if file.suffix == ".pth":
            continue  # leads elsewhere: an editable installation's
        source = Path(str(distribution.locate_file(file)))
        if not source.is_file():
            raise ReleaseMakeError(
                f"{source} is missing: the installation of {distribution.metadata['Name']} is damaged."
            )
        target = site.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _make_read_only(release: Path) -> None:
    for folder, _, names in os.walk(release):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o555 if path.stat().st_mode & 0o100 else 0o444)
        Path(folder).chmod(0o555)
