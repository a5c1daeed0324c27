"""Whose failure an errno is: short of descriptors, disk or memory, this host blames nobody."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from schema.connect import open_owner
from schema.errors import ClawbusError, HostileFileError, HostTroubleError, StorageError, UnusableFileError
from schema.handles import once_more, translate
from schema.migrate import Role
from schema.os_faults import Fault, as_host_error, fault_of, file_error, host_error, probe, read_own_file
from schema.outbound_file import open_outbound_reader
from schema.plain_file import ReadLimits, check_journal, open_plain, refuse_wal

HOST = (
    "EMFILE", "ENFILE", "EIO", "ENOSPC", "ENOMEM", "ESTALE", "EAGAIN", "ETIMEDOUT", "EINTR", "EDQUOT", "EBUSY", "EROFS",
    "EACCES", "EPERM", "ENOLCK", "EREMOTEIO", "EUCLEAN", "EINVAL", "EBADF", "EFBIG",
)  # fmt: skip
THEIRS = ("ELOOP", "ENOTDIR", "EISDIR", "ENXIO", "ENODEV", "ENAMETOOLONG")
EXHAUSTED = {"EMFILE", "ENFILE", "ENOMEM", "EAGAIN"}


def os_error(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", HOST)
def test_what_the_host_cannot_do_now_is_no_evidence_against_a_container(name: str) -> None:
    error = file_error(os_error(name), "x cannot be opened", theirs="x is not a plain file")
    assert isinstance(error, StorageError)
    assert error.code == ("HOST_TROUBLE" if name in EXHAUSTED else "STORAGE")
    assert os.strerror(getattr(errno, name)) in str(error)
    assert error.hint


@pytest.mark.parametrize("name", THEIRS)
def test_what_only_a_container_can_have_put_there_is(name: str) -> None:
    assert isinstance(file_error(os_error(name), "x"), HostileFileError)


def test_an_errno_that_nobody_thought_of_is_the_hosts() -> None:
    assert fault_of(OSError(4095, "what is that")) is Fault.HOST
    assert fault_of(OSError("no errno at all")) is Fault.HOST


def test_short_of_descriptors_the_hint_names_the_limit() -> None:
    assert "LimitNOFILE" in host_error(os_error("EMFILE"), "x").hint


def test_short_of_inodes_or_bytes_the_hint_names_both_commands() -> None:
    assert "df -i" in host_error(os_error("ENOSPC"), "x").hint


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        os_error("EMFILE"),
        os_error("ENOENT"),
        ExceptionGroup("several", [os_error("EIO"), MemoryError()]),
        StorageError("already one"),
    ],
    ids=repr,
)
def test_any_exception_that_says_the_host_cannot_now_becomes_typed(error: BaseException) -> None:
    assert isinstance(as_host_error(error, "x"), StorageError)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        KeyError("a bug"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        BrokenPipeError(errno.EPIPE, "gone"),
        OSError("requests raises these without an errno"),
        ExceptionGroup("one of them is a bug", [os_error("EIO"), KeyError("a bug")]),
    ],
    ids=repr,
)
def test_a_bug_or_a_peer_stays_what_it_is(error: BaseException) -> None:
    assert as_host_error(error, "x") is None


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM,
    ],
)  # fmt: skip
@pytest.mark.parametrize("hostile", [True, False])
def test_sqlites_words_for_it_are_the_hosts_whoever_owns_the_file(tmp_path: Path, code: int, hostile: bool) -> None:
    error = sqlite3.OperationalError("said by sqlite")
    error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_X"
    assert isinstance(translate(error, tmp_path / "outbound.db", hostile=hostile), StorageError)


def test_memory_that_ran_out_is_the_hosts_too(tmp_path: Path) -> None:
    assert isinstance(translate(MemoryError(), tmp_path / "outbound.db", hostile=True), HostTroubleError)


def test_a_folder_or_link_where_sqlite_should_open_a_file_is_the_containers(tmp_path: Path) -> None:
    for code in (sqlite3.SQLITE_CANTOPEN_ISDIR, sqlite3.SQLITE_CANTOPEN_SYMLINK):
        error = sqlite3.OperationalError("said by sqlite")
        error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_X"
        assert isinstance(translate(error, tmp_path / "outbound.db", hostile=True), HostileFileError)
        assert isinstance(translate(error, tmp_path / "inbound.db", hostile=False), StorageError)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    open_owner(folder / "outbound.db", Role.OUTBOUND).close()
    (folder / "outbound.db-journal").write_bytes(b"\0" * 512)
    return folder


def looks(folder: Path) -> list[Callable[[], object]]:
    """Every way of looking into a container's folder before SQLite does."""

    def plain() -> None:
        descriptor = open_plain(folder, "outbound.db")
        if descriptor is not None:
            os.close(descriptor)

    def reader() -> None:
        found = open_outbound_reader(folder, ReadLimits())
        if found is not None:
            found.close()

    return [
        plain,
        lambda: check_journal(folder, ReadLimits()),
        lambda: refuse_wal(folder),
        reader,
    ]


def refusal(look: Callable[[], object]) -> ClawbusError | None:
    """The error of one look; a HostileFileError passes, and fails the test."""
    try:
        look()
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("call", ["open", "fstat", "pread", "lstat", "dup"])
def test_no_call_on_a_containers_file_that_fails_for_the_hosts_sake_accuses_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    real = getattr(os, call)
    for look in looks(out):
        for nth in range(20):
            calls = 0

            def failing(*args: object, nth: int = nth, **more: object) -> object:
                nonlocal calls
                calls += 1
                if calls == nth + 1:
                    raise os_error(name)
                return real(*args, **more)

            monkeypatch.setattr(os, call, failing)
            try:
                refusal(look)
            finally:
                monkeypatch.setattr(os, call, real)
            if calls <= nth:
                break


def test_out_of_real_descriptors_nothing_is_hostile_and_afterwards_all_is_well(out: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    for spare in range(6):
        held = [os.dup(0) for _ in range(40)]  # the limit is on numbers: fill the gaps below it
        lowest = max(held) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
        try:
            for look in looks(out):
                refused += refusal(look) is not None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in held:
                os.close(descriptor)
    assert refused
    for look in looks(out):
        look()


def test_a_new_file_that_sqlite_cannot_make_with_one_descriptor_left_names_the_limit(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # descriptors that earlier tests left to the collector must not become gaps now
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    fill = [os.dup(0)]
    while fill[-1] < highest:  # the limit is on numbers: fill the gaps below it
        fill.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 2, hard))
    try:
        with pytest.raises(HostTroubleError, match="Too many open files") as caught:
            open_owner(tmp_path / "inbound.db", Role.INBOUND)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fill:
            os.close(descriptor)
    assert "LimitNOFILE" in caught.value.hint


def cannot_open() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CANTOPEN, "SQLITE_CANTOPEN"
    return error


@pytest.mark.parametrize("spare", [5, 8, 12])
def test_with_few_descriptors_left_again_what_sqlite_could_not_open_names_the_limit(tmp_path: Path, spare: int) -> None:
    """Other threads close theirs between SQLite's failure and the question why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # descriptors that earlier tests left to the collector must not become gaps now
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    fill = [os.dup(0)]
    while fill[-1] < highest:  # the limit is on numbers: fill the gaps below it
        fill.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 1 + spare, hard))
    try:
        assert probe(tmp_path) is None, "the probe alone sees nothing wrong"
        found = translate(cannot_open(), tmp_path / "inbound.db.new", hostile=False)
        inner = as_host_error(cannot_open(), "x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fill:
            os.close(descriptor)
    for one in (found, inner):
        assert isinstance(one, HostTroubleError)
        assert "Too many open files" in str(one)
        assert "LimitNOFILE" in one.hint


def test_with_descriptors_to_spare_sqlite_could_not_open_a_file_for_another_reason(tmp_path: Path) -> None:
    found = translate(cannot_open(), tmp_path / "inbound.db", hostile=False)
    assert isinstance(found, StorageError)
    assert not isinstance(found, HostTroubleError)


def test_out_of_descriptors_sqlite_names_the_cause_of_what_it_could_not_open(tmp_path: Path) -> None:
    open_owner(tmp_path / "inbound.db", Role.INBOUND).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [socket.socket() for _ in range(4)]
    top = max(one.fileno() for one in taken)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, hard))
        fill: list[int] = []
        try:
            while True:
                fill.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try:
            with pytest.raises(HostTroubleError, match="Too many open files") as caught:
                open_owner(tmp_path / "inbound.db", Role.INBOUND)
        finally:
            for descriptor in fill:
                os.close(descriptor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            one.close()
    assert "LimitNOFILE" in caught.value.hint


class _Full:
    f_files, f_favail, f_bavail = 100, 0, 5000


def test_no_inode_left_is_named_though_bytes_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: _Full())
    found = probe(tmp_path)
    assert found is not None
    assert "df -i" in str(found)


def corrupt() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    return error


@pytest.mark.parametrize("hostile", [True, False])
def test_corruption_that_is_a_disk_that_fails_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: bool
) -> None:
    """SQLite reports EIO of a read as SQLITE_CORRUPT."""
    path = tmp_path / "outbound.db"
    path.write_bytes(b"x" * 5000)
    found = translate(corrupt(), path, hostile=hostile)
    assert isinstance(found, HostileFileError if hostile else UnusableFileError)
    assert found.doubtful, "once is not enough"

    def failing(*_: object) -> bytes:
        raise os_error("EIO")

    monkeypatch.setattr(os, "pread", failing)
    found = translate(corrupt(), path, hostile=hostile)
    assert isinstance(found, StorageError)
    assert not isinstance(found, UnusableFileError)


def test_what_looks_corrupt_is_looked_at_once_more_and_no_more(tmp_path: Path) -> None:
    looked = 0

    def look(failures: int) -> str:
        nonlocal looked
        looked += 1
        if looked <= failures:
            raise translate(corrupt(), tmp_path / "none", hostile=True)
        return "fine"

    assert once_more(lambda: look(1)) == "fine"
    looked = 0
    with pytest.raises(HostileFileError):
        once_more(lambda: look(9))
    assert looked == 2


def test_a_read_that_python_answers_with_none_is_the_hosts_trouble(tmp_path: Path) -> None:
    """EAGAIN of a regular file, as some network file systems answer it: None would pass for an invalid file."""
    os.mkfifo(tmp_path / "file")
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_NONBLOCK)  # open for writing too, and empty: EAGAIN
    try:
        with pytest.raises(BlockingIOError) as caught:
            read_own_file(tmp_path / "file", opener=lambda *_: os.dup(descriptor))
    finally:
        os.close(descriptor)
    assert fault_of(caught.value) is Fault.HOST
