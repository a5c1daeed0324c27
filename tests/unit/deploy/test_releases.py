"""Releases on disk: what is listed, changed, linked and pruned."""

import errno
import fcntl
import io
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.config.agents import Agent
from daemon.config.models import Config, Docker
from daemon.core.deploy_errors import (
    ReleaseInvalidError,
    ReleaseMakeError,
    ReleasesUnusedError,
    SourceOutsideError,
    UnknownReleaseError,
)
from daemon.core.release import Manifest
from daemon.deploy.drift import check_release, report, running_of
from daemon.deploy.drift import repair as repair_drift
from daemon.deploy.own_images import with_own_images
from daemon.deploy.releases import Releases, closure
from daemon.workers.source import Origin, check_origin, hash_files, manifest_in
from schema.errors import StorageError
from tests.support.releases import small_release


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    return tmp_path


def test_without_a_root_there_are_no_releases() -> None:
    with pytest.raises(ReleasesUnusedError):
        Releases("")


def test_releases_are_listed_newest_first_with_their_slots(root: Path) -> None:
    first = small_release(root, "one")
    second = small_release(root, "two", made_at="2026-02-01T00:00:00.000Z")
    releases = Releases(root)
    releases.link("blue", releases.find(first.name))
    assert [(one.short, one.slots) for one in releases.list()] == [(second.name, ()), (first.name, ("blue",))]
    assert (root / "slots" / "blue").resolve() == first


def test_a_slot_moves_in_one_step(root: Path) -> None:
    first, second = small_release(root, "one"), small_release(root, "two")
    releases = Releases(root)
    for path in (first, second, first):
        releases.link("green", releases.find(path.name))
        assert releases.slots() == {"green": path.name}
    assert [path.name for path in (root / "slots").iterdir()] == ["green"]


@pytest.mark.parametrize("package", ["daemon", "schema"])
def test_a_file_changed_after_the_installation_is_named(root: Path, package: str) -> None:
    path = small_release(root)
    file = next(path.rglob(f"{package}/__init__.py"))
    file.write_text("TEXT = 'other'\n")
    releases = Releases(root)
    found, manifest = releases.usable(path.name)
    assert releases.changes(found, manifest).changed == (file.relative_to(path).as_posix(),)
    listed = [releases.checked(one) for one in releases.list()]
    assert [one.fault for one in listed] == [f"changed: {file.relative_to(path).as_posix()}"]


def test_a_missing_and_an_added_file_are_named(root: Path) -> None:
    path = small_release(root)
    next(path.rglob("daemon/__init__.py")).rename(path / "lib" / "moved.py")
    releases = Releases(root)
    changes = releases.changes(*releases.usable(path.name))
    assert (len(changes.missing), changes.added) == (1, ("lib/moved.py",))


def test_an_edited_listing_is_refused(root: Path) -> None:
    path = small_release(root)
    with (path / "files.sha256").open("a") as file:
        file.write("0" * 64 + "  lib/more.py\n")
    releases = Releases(root)
    with pytest.raises(ReleaseInvalidError, match="edited"):
        releases.changes(*releases.usable(path.name))
    assert "edited" in (releases.checked(releases.list()[0]).fault or "")


def test_a_release_under_another_name_is_at_fault(root: Path) -> None:
    path = small_release(root)
    path.rename(path.with_name("0123456789ab"))
    assert "holds the release" in (Releases(root).list()[0].fault or "")


def test_prune_keeps_the_newest_the_slots_and_what_is_needed(root: Path) -> None:
    paths = [small_release(root, str(n), made_at=f"2026-01-0{n}T00:00:00.000Z") for n in range(1, 6)]
    releases = Releases(root)
    releases.link("blue", releases.find(paths[0].name))
    removed, kept = releases.prune(1, [paths[1].name])
    assert removed == [paths[3].name, paths[2].name]
    assert set(kept) == {paths[4].name, paths[0].name, paths[1].name}
    assert {path.name for path in releases.folder.iterdir()} == set(kept)


def test_prune_keeps_what_a_process_runs_from(root: Path) -> None:
    """An agent of the release before last may still be in its turn; a slot's link may have been moved by hand."""
    paths = [small_release(root, str(n), made_at=f"2026-01-0{n}T00:00:00.000Z") for n in range(1, 4)]
    program = paths[0] / "bin" / "agent"
    program.parent.mkdir()
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as process:
        try:
            removed, kept = Releases(root).prune(1, [])
        finally:
            process.kill()
    assert (removed, set(kept)) == ([paths[1].name], {paths[2].name, paths[0].name})
    assert Releases(root).prune(1, [])[0] == [paths[0].name]


def is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_commands_that_move_links_or_remove_releases_wait_for_each_other(root: Path) -> None:
    small_release(root)
    order: list[str] = []
    entered = threading.Event()

    def other() -> None:
        entered.set()
        with Releases(root).alone():
            order.append("second")

    with Releases(root).alone():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(60)
        assert is_locked(root)
        order.append("first")
    thread.join(60)
    assert (order, is_locked(root)) == (["first", "second"], False)


def test_a_whole_id_has_to_be_right_to_its_end(root: Path) -> None:
    path = small_release(root)
    whole = manifest_in(path).release
    assert Releases(root).find(whole).short == path.name
    for wrong in (f"{path.name}zz", f"{whole}0", whole[:-1] + ("0" if whole[-1] != "0" else "1")):
        with pytest.raises(UnknownReleaseError):
            Releases(root).find(wrong)


def test_a_slot_whose_link_leads_elsewhere_is_drift_although_it_ends_in_a_release_s_name(
    root: Path, tmp_path: Path
) -> None:
    path, config = small_release(root), config_of(root)
    Releases(root).link("blue", Releases(root).find(path.name))
    manifest = manifest_in(path)
    elsewhere = tmp_path / "copy" / path.name
    shutil.copytree(path, elsewhere)
    (root / "slots" / "green").symlink_to(elsewhere)
    live = {"source": {"release": manifest.release, "source_digest": manifest.source_digest, "slot": "blue"}}
    found = report(config, Origin(path, manifest, manifest.source_digest), live)
    assert [(one.what, one.where, one.repairable) for one in found.drifts] == [("slot", "green", False)]
    assert str(elsewhere) in str(found.drifts[0])


def test_a_slot_s_link_through_a_link_to_another_file_system_is_a_release(root: Path, tmp_path: Path) -> None:
    path = small_release(root)
    (root / "releases").rename(tmp_path / "other")
    (root / "releases").symlink_to(tmp_path / "other")
    releases = Releases(root)
    releases.link("blue", releases.find(path.name))
    assert releases.slots() == {"blue": path.name}
    (root / "slots" / "green").symlink_to(tmp_path / "other" / path.name)
    assert releases.slots()["green"] == path.name


def test_the_release_that_serves_is_checked_without_a_slot_too(root: Path) -> None:
    path, config = small_release(root), config_of(root)
    manifest = manifest_in(path)
    next(path.rglob("daemon/__init__.py")).write_text("TEXT = 'other'\n")
    live = {"source": {"release": manifest.release, "source_digest": manifest.source_digest, "slot": None}}
    found = report(config, Origin(path, manifest, manifest.source_digest), live)
    assert [one.what for one in found.drifts] == ["files"]


def test_what_a_crash_left_unfinished_is_no_release_and_is_removed_when_it_is_old(root: Path) -> None:
    old, fresh = root / "releases" / ".making-old", root / "releases" / ".making-fresh"
    for path in (old, fresh):
        path.mkdir(parents=True)
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    releases = Releases(root)
    assert releases.list() == []
    releases.prune(3, [])
    assert (old.exists(), fresh.exists()) == (False, True)


def test_a_start_from_outside_is_refused_only_where_releases_are_used(root: Path) -> None:
    inside = small_release(root)
    outside = Origin(root, None, "")
    other_root = Origin(inside, manifest_in(inside), "")
    check_origin(outside, "", developer=False)
    check_origin(outside, str(root), developer=True)
    check_origin(other_root, str(root), developer=False)
    for found, where in ((outside, str(root)), (other_root, "/elsewhere")):
        with pytest.raises(SourceOutsideError):
            check_origin(found, where, developer=False)


def test_a_refused_start_names_how_the_first_slot_begins_or_that_one_is_to_be_started(root: Path) -> None:
    inside = small_release(root)
    with pytest.raises(SourceOutsideError) as fresh:
        check_origin(Origin(root, None, ""), str(root), developer=False)
    assert "clawbus release link blue RELEASE" in fresh.value.hint
    releases = Releases(root)
    releases.link("blue", releases.find(inside.name))
    with pytest.raises(SourceOutsideError) as linked:
        check_origin(Origin(root, None, ""), str(root), developer=False)
    assert "systemctl start clawbus@blue" in linked.value.hint


def config_of(root: Path) -> Config:
    return Config.model_validate(
        {"data_dir": str(root / "data"), "deploy": {"root": str(root)}, "runtime": {"kind": "process"}}
    )


def test_the_daemon_s_drift_is_named_and_the_link_repaired(root: Path) -> None:
    first, second = small_release(root, "one"), small_release(root, "two")
    releases, config = Releases(root), config_of(root)
    releases.link("blue", releases.find(first.name))
    manifest = manifest_in(first)
    live = {"source": {"release": manifest.release, "source_digest": manifest.source_digest, "slot": "blue"}}
    origin = Origin(first, manifest, manifest.source_digest)
    assert report(config, origin, live).drifts == ()
    releases.link("blue", releases.find(second.name))
    found = report(config, origin, live)
    assert [(one.what, one.where) for one in found.drifts] == [("slot", "blue")]
    assert repair_drift(releases, found, running_of(live)) == [f"slot blue points at {first.name} again"]
    assert report(config, origin, live).drifts == ()


def test_images_of_an_engine_that_does_not_answer_are_unchecked_and_no_drift(root: Path) -> None:
    made = small_release(root, "one", images={"agent:1": f"sha256:{'1' * 64}"})
    releases, manifest = Releases(root), manifest_in(made)
    for slot in ("blue", "green"):
        releases.link(slot, releases.find(made.name))
    away = Docker(host=f"unix://{root}/no.sock")
    config = config_of(root).model_copy(update={"docker": away})
    live = {"source": {"release": manifest.release, "source_digest": manifest.source_digest, "slot": "blue"}}
    found = report(config, Origin(made, manifest, manifest.source_digest), live)
    assert (found.drifts, found.absent, len(found.unchecked)) == ((), (), 1)
    assert "no.sock" in found.unchecked[0]


def test_a_daemon_from_elsewhere_is_drift(root: Path) -> None:
    found = report(config_of(root), Origin(root, None, ""), {"source": {"release": None, "source_digest": "x"}})
    assert [one.what for one in found.drifts] == ["daemon"]


def test_a_daemon_of_a_release_starts_its_agents_by_that_release_s_image_ids(root: Path) -> None:
    manifest = manifest_in(small_release(root, images={"a:1": "sha256:a", "b:1": "sha256:b"}))
    config = Config(
        docker=Docker(image="a:1"),
        agents={"x": Agent(image="b:1"), "y": Agent(), "own": Agent(image="b:1", runner=("r",))},
    )
    found = with_own_images(config, manifest)
    assert (found.docker.image, found.agents["x"].image, found.agents["y"].image) == ("sha256:a", "sha256:b", None)
    assert found.agents["own"].image == "b:1"
    assert with_own_images(config, None) is config


def test_the_closure_has_what_clawbus_requires_and_no_tool_of_the_developer() -> None:
    names = {str(one.metadata["Name"]).lower() for one in closure("clawbus")}
    assert {"clawbus", "anyio", "pydantic", "starlette"} <= names
    assert not {"pytest", "ruff", "basedpyright"} & names


def unreadable(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let every file of this name fail to open."""
    real = io.open

    def opened(file: Any, *arguments: Any, **more: Any) -> Any:
        if Path(str(file)).name == name:
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *arguments, **more)

    patch.setattr(io, "open", opened)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_what_this_host_cannot_read_now_is_no_fault_of_a_release(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    paths = [small_release(root, str(n), made_at=f"2026-01-0{n}T00:00:00.000Z") for n in range(1, 4)]
    releases = Releases(root)
    with monkeypatch.context() as patch:
        unreadable(patch, "release.json", number)
        for look in (releases.list, lambda: releases.prune(3, []), lambda: manifest_in(paths[0])):
            with pytest.raises(StorageError, match=os.strerror(number)):
                look()
    assert len(releases.list()) == 3, "a release whose manifest could not be read was not taken for a broken one"
    with monkeypatch.context() as patch:
        unreadable(patch, "__init__.py", number)
        with pytest.raises(StorageError, match=os.strerror(number)):
            hash_files(paths[0])
        drifts, unknown = check_release(Config(), releases, releases.find(paths[0].name))
        assert drifts == []
        assert os.strerror(number) in unknown[0]
    assert releases.checked(releases.find(paths[0].name)).fault is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_prune_removes_nothing_while_it_cannot_see_what_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    paths = [small_release(root, str(n), made_at=f"2026-01-0{n}T00:00:00.000Z") for n in range(1, 4)]
    releases = Releases(root)
    releases.link("blue", releases.find(paths[0].name))

    def fails(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", fails)
        with pytest.raises(StorageError, match=os.strerror(number)):
            releases.prune(1, [])
    with monkeypatch.context() as patch:
        unreadable(patch, "cmdline", number)
        with pytest.raises(StorageError, match=os.strerror(number)):
            releases.prune(1, [])
    assert len(releases.list()) == 3


def test_a_file_without_the_right_to_read_it_counts_as_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_release(root)
    unreadable(monkeypatch, "__init__.py", errno.EACCES)
    assert Releases(root).changes(*Releases(root).usable(path.name)).changed


def test_a_full_disk_is_named_by_what_was_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the file that was read, which lies on another disk."""

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ReleaseMakeError) as caught:
        Releases(tmp_path).make(Manifest("", "", "", "", ""), lambda _: None)
    assert str(caught.value).startswith(f"{tmp_path}/releases/.making-")
    assert list((tmp_path / "releases").iterdir()) == []
