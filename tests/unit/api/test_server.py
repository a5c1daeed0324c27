"""The control socket: private, never another daemon's, gone at the end; and the server around it ends promptly."""

import contextlib
import os
import resource
import socket
import stat
import threading
import time
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from structlog.testing import capture_logs

from daemon.api import server as server_module
from daemon.api.api import build_api
from daemon.api.server import MAX_PATH_BYTES, bind, run
from daemon.core.errors import SocketInUseError, SocketPathError
from daemon.http.connections import ConnectionLimits
from tests.support.fake_operations import FakeOperations, serving


def path_of_length(folder: Path, length: int) -> Path:
    rest = length - len(os.fsencode(folder)) - 1
    return folder / ("s" * rest)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def test_the_longest_path_is_bound_and_one_byte_more_is_refused(short: Path) -> None:
    with bind(path_of_length(short, MAX_PATH_BYTES)):
        pass
    with pytest.raises(SocketPathError, match="108 bytes"):
        bind(path_of_length(short, MAX_PATH_BYTES + 1))


def test_length_counts_bytes_not_characters(short: Path) -> None:
    with pytest.raises(SocketPathError, match="bytes"):
        bind(short / ("\u00e9" * 60))


def test_the_length_is_judged_before_anything_is_touched(short: Path) -> None:
    with pytest.raises(SocketPathError, match="bytes"):
        bind(short / "missing" / ("s" * 120))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_nobody_else_may_connect_whatever_the_umask(short: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with bind(short / "c.sock"):
            mode = stat.S_IMODE((short / "c.sock").lstat().st_mode)
    finally:
        os.umask(before)
    assert mode == 0o600


def test_the_mode_is_right_before_any_chmod(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def chmod(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(self.lstat().st_mode))

    monkeypatch.setattr(Path, "chmod", chmod)
    before = os.umask(0)
    try:
        bind(short / "c.sock").close()
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_stale_socket_is_replaced(short: Path) -> None:
    path = short / "c.sock"
    bind(path).close()
    assert path.is_socket()
    with bind(path) as sock:
        assert sock.getsockname() == str(path)


def test_a_socket_that_answers_is_left_alone(short: Path) -> None:
    path = short / "c.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        inode = path.lstat().st_ino
        with pytest.raises(SocketInUseError):
            bind(path)
        assert path.lstat().st_ino == inode


def test_a_socket_with_a_full_backlog_is_somebody_s(short: Path) -> None:
    path = short / "c.sock"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as filler:
        other.bind(str(path))
        other.listen(0)
        filler.setblocking(False)
        filler.connect(str(path))
        with pytest.raises(SocketInUseError):
            bind(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(short: Path, kind: str) -> None:
    path = short / "c.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(short / "elsewhere")
    with pytest.raises(SocketPathError, match="is not a socket"):
        bind(path)
    assert path.is_symlink() or path.exists()


def test_a_missing_folder_is_told(short: Path) -> None:
    with pytest.raises(SocketPathError, match="No such file"):
        bind(short / "missing" / "c.sock")


def test_the_file_is_removed_at_the_end_but_a_successor_s_is_not(short: Path) -> None:
    path = short / "c.sock"
    with serving(FakeOperations(), path):
        assert path.is_socket()
    assert not path.exists()
    with serving(FakeOperations(), path):
        path.unlink()
        successor = bind(path)
    assert path.is_socket()
    successor.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give open requests so much grace that a server that waits for one never ends in this test's time."""
    monkeypatch.setattr(server_module, "serve", partial(server_module.serve, grace_s=3600.0))


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_it_ends_without_waiting_for_an_open_long_poll(short: Path) -> None:
    path, operations = short / "c.sock", FakeOperations()
    url = "/v1/replies?agent=mute&session=s&message_id=m&wait_s=60"
    answers: list[httpx.Response] = []

    async def poll() -> None:
        async with client(path) as http:
            answers.append(await http.get(url, timeout=30))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as outer, anyio.create_task_group() as server:
            await server.start(run, build_api(operations), path)
            outer.start_soon(poll)
            assert await anyio.to_thread.run_sync(operations.polling.wait, 10)
            server.cancel_scope.cancel()
    assert operations.polls_ended == 1
    assert answers[0].json() == {"ok": True, "result": {"entry": None}}
    assert not path.exists()


@pytest.mark.anyio
async def test_a_request_that_does_not_listen_is_cut_with_503(short: Path) -> None:
    path = short / "c.sock"
    entered = anyio.Event()
    answers: list[httpx.Response] = []

    class Deaf(FakeOperations):
        async def status(self) -> dict[str, object]:
            entered.set()
            await anyio.sleep_forever()
            raise AssertionError

    async def ask() -> None:
        async with client(path) as http:
            answers.append(await http.get("/v1/status", timeout=30))

    async with anyio.create_task_group() as outer, anyio.create_task_group() as server:
        await server.start(run, build_api(Deaf()), path)
        outer.start_soon(ask)
        with anyio.fail_after(60):
            await entered.wait()
        server.cancel_scope.cancel()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "DAEMON_STOPPING"


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_an_idle_connection_does_not_hold_the_end(short: Path) -> None:
    path = short / "c.sock"
    async with client(path) as http:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as server:
                await server.start(run, build_api(FakeOperations()), path)
                await http.get("/v1/status")
                server.cancel_scope.cancel()


def test_a_client_that_goes_ends_its_long_poll(short: Path) -> None:
    operations = FakeOperations()
    with serving(operations, short / "c.sock"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(short / "c.sock"))
            raw.sendall(b"GET /v1/replies?agent=mute&session=s&message_id=m&wait_s=60 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert operations.polling.wait(10)
        deadline = time.monotonic() + 10
        while not operations.polls_ended and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        assert operations.polls_ended == 1


@pytest.mark.anyio
@pytest.mark.parametrize("left_behind", [False, True])
async def test_a_socket_that_is_removed_is_bound_anew(short: Path, *, left_behind: bool) -> None:
    path, operations = short / "c.sock", FakeOperations()
    async with anyio.create_task_group() as server:
        await server.start(partial(run, look_s=0.01), build_api(operations), path)
        async with client(path) as before:
            await before.get("/v1/status")
            path.unlink()
            if left_behind:  # somebody else's, and nobody listens
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(str(path))
            with anyio.fail_after(60):
                while not await anyio.to_thread.run_sync(answers, path):
                    await anyio.lowlevel.checkpoint()
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            assert (await before.get("/v1/status")).status_code == 200
        async with client(path) as after:
            assert (await after.get("/v1/status")).json()["ok"] is True
        server.cancel_scope.cancel()
    assert not path.exists()


@pytest.mark.anyio
async def test_a_socket_of_another_daemon_in_its_place_is_left_alone(short: Path) -> None:
    path, inode = short / "c.sock", 0
    with capture_logs() as logs, socket.socket(socket.AF_UNIX) as other:
        async with anyio.create_task_group() as server:
            await server.start(partial(run, look_s=0.01), build_api(FakeOperations()), path)
            other.bind(str(short / "other"))
            other.listen(64)
            (short / "other").rename(path)
            inode = path.lstat().st_ino
            with anyio.fail_after(60):
                while not logs:
                    await anyio.lowlevel.checkpoint()
            server.cancel_scope.cancel()
    assert logs[0]["event"] == "control_socket_lost"
    assert path.lstat().st_ino == inode


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def client(path: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://x")


def test_idle_clients_are_bounded_and_ended_by_a_clock_and_a_busy_one_is_not(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "control_limits", lambda: ConnectionLimits(8, 8, 0.3, 0.3))
    operations, path = FakeOperations(), short / "c.sock"
    with (
        serving(operations, path),
        capture_logs() as logs,
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)),
            base_url="http://x",
            timeout=10,
            headers={
                "connection": "close"
            },  # a connection that is kept would be ended by the same clock as the idle ones
        ) as asking,
    ):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        for one in idle:
            one.settimeout(10)
            one.connect(str(path))
        assert asking.get("/v1/status").status_code == 200, "the oldest idle one made room"
        for one in idle:
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b"", "ended by the server"
            one.close()
        assert asking.get("/v1/status").status_code == 200
    assert [one["event"] for one in logs].count("control_full") == 1


def test_the_limit_of_clients_leaves_descriptors_for_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((64, 32), (256, 64), (1024, 256), (10**6, 512), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert server_module.control_limits().max_connections == most


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nA\0B: c\r\n\r\n",
    ],
)
def test_what_is_not_http_ends_its_connection_and_no_other(short: Path, sent: bytes) -> None:
    path = short / "c.sock"
    with serving(FakeOperations(), path), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(path))
        raw.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := raw.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x", timeout=60) as asking:
            assert asking.get("/v1/status").status_code == 200
