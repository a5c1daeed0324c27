"""The files of an agent's messages: what its HOME may give, and that a row is never without its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from container_runner.shared.outbox import Outbox
from container_runner.shared.reply import OutFile, Reply
from container_runner.shared.sent_files import FileSource, place_files
from schema.connect import open_owner
from schema.migrate import Role

FILES = (OutFile("a.txt", b"first"), OutFile("b.bin", b"\0\xff"))


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "A.TXT", "c", "d"):
        (home / name).write_bytes(b"1234")
    return FileSource(home, max_files=3, max_bytes=10)


def test_paths_become_names_and_what_is_refused_says_why(source: FileSource) -> None:
    paths = ["a.txt", "./sub/b.txt", f"{source.home}/A.TXT", "sub/../a.txt", "/etc/passwd", "", "c"]
    content, files, left = source.attach({"text": "x", "files": paths})
    assert [one.name for one in files] == ["a.txt", "b.txt"]
    assert content["files"] == ["a.txt", "b.txt"]
    refused = content["files_refused"]
    assert isinstance(refused, list)
    assert [(one["name"], one["reason"].split(",")[0]) for one in refused] == [
        ("A.TXT", "has the name of another file of this message"),
        ("a.txt", "is not below HOME"),
        ("passwd", "is not below HOME"),
        ("", "is empty"),
    ], "after more refusals than files are allowed, no further path is looked at"
    assert left[2].detail.endswith("(looked for /etc/passwd)"), "the agent and the operator see the path"


def test_a_file_that_is_not_there_says_where_paths_begin_and_what_was_looked_for(source: FileSource) -> None:
    content, files, (refused,) = source.attach({"text": "x", "files": ["out/plot.png"]})
    assert files == ()
    assert content["files_refused"] == [
        {"name": "plot.png", "reason": "is not there; paths are relative to HOME, or absolute and below it"}
    ], "a sender may be a stranger, and learns no path"
    assert refused.detail.endswith(f"(looked for {source.home}/out/plot.png)")


def test_files_that_were_brought_count_with_those_that_are_named(source: FileSource) -> None:
    brought = (OutFile("A.txt", b"12345"),)
    content, files, refused = source.attach({"text": "x", "files": ["a.txt", "c", "d"]}, brought)
    assert [one.name for one in files] == content["files"] == ["A.txt", "c"]
    assert [one.path for one in refused] == ["a.txt", "d"]
    assert source.attach({"text": "x"}, brought)[:2] == ({"text": "x", "files": ["A.txt"]}, brought)


def test_number_and_size_are_limited_over_all_files(source: FileSource) -> None:
    files, refused = source.read(["a.txt", "c", "d"])
    assert [one.name for one in files] == ["a.txt", "c"]
    assert "has 4 bytes, of which 2 are left" in refused[0].reason
    (source.home / "c").write_bytes(b"")
    (source.home / "d").write_bytes(b"")
    files, refused = source.read(["a.txt", "c", "d", "sub/b.txt"])
    assert len(files) == 3
    assert "one too many" in refused[0].reason


@pytest.mark.parametrize(
    "content", [{"text": "x"}, {"files": []}, {"files": "a.txt"}, {"files": [1]}, {"files": [["a"]]}]
)
def test_content_without_a_list_of_paths_stays_as_it_is(source: FileSource, content: dict[str, object]) -> None:
    assert source.attach(content) == (content, (), ())


def test_the_folder_is_whole_after_a_crash_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    deaths = 0
    while True:
        left = deaths

        def step(work: object) -> object:
            def stepped(*given: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return work(*given, **named)  # pyright: ignore[reportCallIssue]

            return stepped

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", step(os.fsync))
            patched.setattr(Path, "mkdir", step(Path.mkdir))
            patched.setattr(Path, "rename", step(Path.rename))
            try:
                place_files(tmp_path, "m1", FILES)
            except Killed:
                found = tmp_path / "outbox" / "m1"
                assert not found.exists() or len(list(found.iterdir())) == 2
            else:
                break
        deaths += 1
    assert deaths == 7, "two folders, two files, their folder, the rename, and the folder that has it"
    assert {path.name: path.read_bytes() for path in (tmp_path / "outbox" / "m1").iterdir()} == {
        "a.txt": b"first", "b.bin": b"\0\xff"
    }  # fmt: skip


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    for name, role in (("in", Role.INBOUND), ("out", Role.OUTBOUND)):
        (tmp_path / name).mkdir()
        open_owner(tmp_path / name / f"{role.value}.db", role).close()
    return Outbox(tmp_path / "in", tmp_path / "out", lambda: 0)


def _reply(*files: OutFile) -> Reply:
    return Reply("chat", "{}", None, None, None, None, final=False, files=files)


def test_a_row_that_is_there_keeps_the_files_it_came_with(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox.add("m1", _reply(*FILES))
    assert not outbox.add("m1", _reply(OutFile("a.txt", b"other")))
    assert (tmp_path / "out" / "outbox" / "m1" / "a.txt").read_bytes() == b"first"


def test_files_go_when_the_host_has_copied_them_and_at_a_start_those_without_a_row(
    outbox: Outbox, tmp_path: Path
) -> None:
    for row in ("delivered", "tracked", "new"):
        outbox.add(row, _reply(*FILES))
    for lost in ("lost", ".half"):
        (tmp_path / "out" / "outbox" / lost).mkdir()
    with open_owner(tmp_path / "in" / "inbound.db", Role.INBOUND) as db, db.transaction():
        db.execute("INSERT INTO delivered(message_out_id, delivered_at) VALUES ('delivered', '')")
        db.execute(
            "INSERT INTO delivery_attempts(message_out_id, seq, destination, state, first_at)"
            " VALUES ('tracked', 3, '', 'queued', 0)"
        )
    outbox.remove_files()
    assert {path.name for path in (tmp_path / "out" / "outbox").iterdir()} == {"new", "lost", ".half"}
    outbox.remove_files(starting=True)
    assert {path.name for path in (tmp_path / "out" / "outbox").iterdir()} == {"new"}


PUT = {
    "fifo": os.mkfifo,
    "link": lambda path: path.symlink_to("/nowhere"),
    "file": Path.touch,
}


@pytest.mark.parametrize("kind", PUT)
def test_what_the_agent_put_in_place_of_a_row_s_folder_holds_nothing_up(
    outbox: Outbox, tmp_path: Path, kind: str
) -> None:
    """A fifo is the worst: whoever opens it waits for its writer for ever, and so did each of the session's runners."""
    folder = tmp_path / "out" / "outbox"
    folder.mkdir()
    for name in ("m1", ".m1", "lost", ".half"):
        PUT[kind](folder / name)
    assert outbox.add("m1", _reply(*FILES))
    assert len(list((folder / "m1").iterdir())) == 2
    outbox.remove_files(starting=True)
    assert {path.name for path in folder.iterdir()} == {"m1"}
