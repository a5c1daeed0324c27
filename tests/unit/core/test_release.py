"""Manifests, ids, listings and drift, without a file."""

import json
from dataclasses import replace

import pytest

from daemon.core.deploy_errors import ReleaseInvalidError, UnknownReleaseError
from daemon.core.release import (
    Changes,
    ImageFound,
    Manifest,
    Running,
    compare_files,
    drift_of_daemon,
    drift_of_images,
    drift_of_release,
    find_release,
    listing_digest,
    listing_text,
    read_listing,
    read_manifest,
)

A, B = "a" * 64, "b" * 64
MANIFEST = Manifest(
    "1.0", "3.11.2", A, B, "2026-01-01T00:00:00.000Z", {"anyio": "4"}, {"img:1": "sha256:1"}, {"inbound": 4}
)


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert read_manifest(json.dumps(MANIFEST.as_json()), "release.json") == MANIFEST


@pytest.mark.parametrize(
    "change",
    [{"daemon_version": "1.1"}, {"source_digest": B}, {"images": {}}, {"release": B}, {"tree_digest": "short"}, {"extra": 1}],
)  # fmt: skip
def test_an_edited_manifest_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ReleaseInvalidError):
        read_manifest(json.dumps({**MANIFEST.as_json(), **change}), "release.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"release": 1}', "\x00"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ReleaseInvalidError):
        read_manifest(text, "release.json")


def test_the_id_covers_every_field() -> None:
    others = [replace(MANIFEST, python="3.12.0"), replace(MANIFEST, made_at="x"), replace(MANIFEST, packages={})]
    assert len({MANIFEST.release, *(one.release for one in others)}) == 4


def test_a_release_is_found_by_its_beginning_and_never_guessed() -> None:
    known = ["abc123", "abd456"]
    assert find_release("abc", known) == "abc123"
    for wanted in ("ab", "", "f"):
        with pytest.raises(UnknownReleaseError):
            find_release(wanted, known)


def test_a_listing_is_what_sha256sum_reads() -> None:
    files = {"b/c": B, "a": A}
    assert listing_text(files) == f"{A}  a\n{B}  b/c\n"
    assert read_listing(listing_text(files)) == files
    assert listing_digest(files) == listing_digest(dict(reversed(files.items())))


def test_each_kind_of_change_is_named() -> None:
    found = compare_files(
        {"kept": A, "changed": A, "gone": A}, {"kept": A, "changed": B, "new": A, "x/__pycache__/y.pyc": A}
    )
    assert found == Changes(("changed",), ("gone",), ("new",))
    assert str(found) == "changed: changed; missing: gone; added: new"
    assert not compare_files({"kept": A}, {"kept": A})


def test_no_drift_where_all_four_digests_agree() -> None:
    assert drift_of_release(MANIFEST, Changes(), A, "/r") == []
    assert drift_of_images(MANIFEST, {"sha256:1": ImageFound("sha256:1", A)}) == []
    assert drift_of_daemon(MANIFEST, Running(MANIFEST.release, A)) == []


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (drift_of_release(MANIFEST, Changes(changed=("daemon/x.py",)), A, "/r"), "files"),
        (drift_of_release(MANIFEST, Changes(), B, "/r"), "source"),
        (drift_of_images(MANIFEST, {"sha256:1": ImageFound("sha256:1", B)}), "image"),
        (drift_of_images(MANIFEST, {"sha256:1": ImageFound("sha256:1", None)}), "image"),
        (drift_of_images(MANIFEST, {"sha256:1": ImageFound(error="is missing")}), "image"),
        (drift_of_images(MANIFEST, {}), "image"),
        (drift_of_daemon(MANIFEST, Running(B, A)), "daemon"),
        (drift_of_daemon(MANIFEST, Running(None, A)), "daemon"),
        (drift_of_daemon(MANIFEST, Running(MANIFEST.release, B)), "daemon"),
    ],
)
def test_each_drift_is_named(found: list[object], what: str) -> None:
    assert [getattr(one, "what", None) for one in found] == [what]
