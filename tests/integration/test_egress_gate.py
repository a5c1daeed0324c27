"""The gate over real sockets: a real target on loopback, h11 as the client, hostile bytes where the container is hostile."""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from daemon.config.egress import Egress
from daemon.core.clock import SystemClock
from daemon.core.egress_usage import Usage, UsageRow
from daemon.core.events import EgressRequest, Event
from daemon.egress import client as gate_client
from daemon.egress.gate import Gate
from daemon.egress.ledger import Ledger
from schema.layout import GATE_SOCKET
from tests.support.egress_target import Target, target

pytestmark = pytest.mark.anyio

KEY = "sk-REAL-key-on-the-host"
PATIENCE_S = 20.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the usual one reads every certificate of the machine


class Nowhere:
    """Where a test's counts go."""

    async def load(self, first_day: str) -> Sequence[UsageRow]:
        del first_day
        return ()

    async def write(self, rows: Sequence[UsageRow], before: str) -> None:
        del rows, before


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - it is seen from outside only
            await anyio.sleep(0.005)


class World:
    """A gate, its target, and clients of the session helper/s."""

    def __init__(self, folder: Path, there: Target, gate: Gate, events: list[EgressRequest]) -> None:
        self.folder, self.target, self.gate, self.events = folder, there, gate, events

    def path(self, agent: str = "helper") -> str:
        folder = self.gate.folder(agent, "s")
        assert folder is not None
        return str(folder / GATE_SOCKET)

    def client(self, agent: str = "helper") -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self.path(agent), verify=NO_TLS), base_url="http://gate"
        )

    async def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the gate closes."""
        reader, writer = await asyncio.open_unix_connection(self.path())
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        found = b""
        with contextlib.suppress(ConnectionError):
            found = await reader.read()
        writer.close()
        return found

    async def codes(self, count: int) -> list[str | None]:
        await until(lambda: len(self.events) >= count)
        return [event.code for event in self.events]


def tables(there: Target, folder: Path, **more: Any) -> dict[str, Any]:
    here = f"127.0.0.1:{there.port}"
    return {
        "private_targets": [here],
        "routes": {
            "model": {
                "upstream": f"http://{here}/base",
                "agents": ["helper"],
                "header": "x-api-key",
                "secret_file": str(folder / "key"),
                "api": "anthropic",
            },
            "narrow": {"upstream": f"http://{here}", "agents": ["helper"], "paths": ["/v1/echo", "/v1/files/*"]},
            "other": {"upstream": f"http://{here}", "agents": ["other"]},
        },
        "connect": {"web": {"hosts": [here, "*.example.invalid:443"], "agents": ["helper"]}},
        **more,
    }


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder whose sockets have short enough names: a test's usual one is too long for AF_UNIX beside other workers."""
    with tempfile.TemporaryDirectory(prefix="cb") as folder:
        yield Path(folder)


@asynccontextmanager
async def world(folder: Path, **more: Any) -> AsyncGenerator[World]:
    (folder / "key").write_text(f"{KEY}\n")
    events: list[EgressRequest] = []

    def publish(event: Event) -> None:
        assert isinstance(event, EgressRequest)
        events.append(event)

    async with target() as there, anyio.create_task_group() as tasks:
        table = Egress.model_validate(tables(there, folder, **more))
        ledger = Ledger(table.daily(), UTC, SystemClock(), Nowhere())
        gate = Gate(table, folder / "egress", SystemClock(), ledger, publish)
        await tasks.start(gate.run)
        await anyio.to_thread.run_sync(gate.open, "helper", "s")
        await anyio.to_thread.run_sync(gate.open, "other", "s")
        yield World(folder, there, gate, events)
        tasks.cancel_scope.cancel()


async def test_a_route_adds_the_key_and_takes_the_placeholder_away(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client() as client:
        answer = await client.post(
            "/model/v1/messages?beta=true",
            headers={
                "x-api-key": "placeholder",
                "authorization": "Bearer placeholder",
                "connection": "x-odd",
                "x-odd": "1",
            },
            json={"model": "m"},
        )
        seen = answer.json()
        assert answer.status_code == 200
        assert seen["target"] == "/base/v1/messages?beta=true"
        assert seen["headers"]["x-api-key"] == KEY
        assert seen["headers"]["host"] == f"127.0.0.1:{w.target.port}"
        assert seen["headers"]["accept-encoding"] == "identity"
        assert not {"authorization", "x-odd", "connection"} & set(seen["headers"])
        assert json.loads(seen["body"]) == {"model": "m"}
        assert await w.codes(1) == [None]
        assert (w.events[0].name, w.events[0].target, w.events[0].status) == ("model", "/model/v1/messages", 200)
        assert w.events[0].bytes_up == len('{"model":"m"}')


async def test_the_secret_is_read_at_each_use_and_its_trouble_is_the_hosts(tmp_path: Path) -> None:
    key = tmp_path / "key"
    async with world(tmp_path) as w, w.client() as client:
        key.write_text("")
        empty = await client.get("/model/x")
        key.write_text("two words")
        odd = await client.get("/model/x")
        key.unlink()
        missing = await client.get("/model/x")
        key.write_text("sk-new")
        assert (await client.get("/model/x")).json()["headers"]["x-api-key"] == "sk-new"
        for answer in (empty, odd, missing):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["type"] == "overloaded_error"  # the provider's own shape
            assert str(key) in answer.json()["error"]["message"]
        assert (await w.codes(4))[:3] == ["EGRESS_SECRET"] * 3
        assert len(w.target.seen) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/narrow/v1/echo", 200),
        ("/narrow/v1/files/7", 200),
        ("/narrow/v1/echo/more", 403),
        ("/narrow/admin", 403),
        ("/narrow/v1/files/../admin", 400),
        ("/narrow/v1/files/%2e%2e/admin", 400),
        ("/narrow/v1/files/%252e%252e/admin", 400),
        ("/narrow/v1/files%2f..%2fadmin", 400),
        ("/narrow/v1/files/..;x/admin", 400),
        ("/narrow//v1/echo", 400),
        ("/narrow/v1/files/..\\admin", 400),
        ("/other/x", 403),
        ("/", 403),
        ("/nothing/x", 403),
    ],
)
async def test_paths_are_allowed_by_name(tmp_path: Path, path: str, status: int) -> None:
    async with world(tmp_path) as w:
        got = await w.raw(f"GET {path} HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\r\n".encode())
        assert int(got.split()[1]) == status
        assert bool(w.target.seen) == (status == 200)


async def test_a_session_is_known_by_its_socket(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client("other") as other, w.client() as helper:
        assert (await other.get("/other/x")).status_code == 200
        assert (await other.get("/model/x")).status_code == 403
        assert (await helper.get("/other/x")).status_code == 403
        assert await anyio.to_thread.run_sync(w.gate.folder, "stranger", "s") is None


async def test_a_refused_request_for_the_head_alone_is_answered_logged_and_counted(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client() as helper:
        refused = await helper.head("/other/x")
        assert (refused.status_code, refused.headers["x-clawbus-code"]) == (403, "EGRESS_NOT_ALLOWED")
        assert refused.content == b""
        (tmp_path / "key").unlink()
        assert (await helper.head("/model/x")).status_code == 503
        assert await w.codes(2) == ["EGRESS_NOT_ALLOWED", "EGRESS_SECRET"]
        assert [event.method for event in w.events] == ["HEAD", "HEAD"]


async def test_streams_come_piece_by_piece_and_end_at_the_target_when_the_container_hangs_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client() as client:
        with anyio.fail_after(PATIENCE_S):
            async with client.stream("GET", "/model/stream") as answer:
                pieces = answer.aiter_raw()
                w.target.step.release()
                assert await anext(pieces) == b"data: 0\n\n"  # before the next one exists
                w.target.step.release()
                assert await anext(pieces) == b"data: 1\n\n"
            await w.target.gone.wait()  # the gate hung up, too
        assert (await w.codes(1)) == ["EGRESS_CLIENT_GONE"]


async def test_a_target_that_is_silent_is_named_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path, silence_timeout_s=1.0) as w, w.client() as client:
        assert (await client.get("/model/slow", timeout=PATIENCE_S)).status_code == 504
        assert await w.codes(1) == ["EGRESS_UPSTREAM_TIMEOUT"]
        assert w.events[0].error == f"127.0.0.1:{w.target.port} did not answer in time: ReadTimeout."


async def test_a_request_that_nobody_waits_for_ends_at_the_target(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with anyio.fail_after(PATIENCE_S):
            _, writer = await asyncio.open_unix_connection(w.path())
            writer.write(b"GET /model/slow HTTP/1.1\r\nhost: gate\r\n\r\n")
            await until(lambda: bool(w.target.seen))
            writer.close()
            await w.target.gone.wait()
        assert (await w.codes(1)) == ["EGRESS_CLIENT_GONE"]


async def test_a_hundred_streams_at_once_share_one_session(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        done: list[bytes] = []

        limits = httpx.Limits(max_connections=None)
        transport = httpx.AsyncHTTPTransport(uds=w.path(), verify=NO_TLS, limits=limits)
        client = httpx.AsyncClient(transport=transport, base_url="http://gate", timeout=PATIENCE_S)

        async def one() -> None:
            done.append((await client.get("/model/stream")).content)

        async with client, anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one)
            await until(lambda: len(w.target.seen) == 100)  # all of them are open before any goes on
            for _ in range(300):
                w.target.step.release()
        assert done == [b"data: 0\n\ndata: 1\n\ndata: 2\n\n"] * 100


async def test_large_bodies_pass_in_both_framings_and_too_large_ones_do_not(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_bytes=3_000_000) as w, w.client() as client:

        async def pieces(count: int) -> AsyncGenerator[bytes]:
            for _ in range(count):
                yield b"x" * 100_000

        assert (await client.post("/model/sink", content=b"y" * 2_500_000)).text == "2500000"
        assert (await client.post("/model/sink", content=pieces(25))).text == "2500000"
        assert (await client.post("/model/sink", content=pieces(40))).status_code == 413
        assert (await w.codes(3))[2] == "EGRESS_BODY_TOO_LARGE"


async def test_a_cut_answer_is_seen_as_cut(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/model/cut")
        assert (await w.codes(1)) == ["EGRESS_UPSTREAM"]


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ("https://evil.example/x", None),
        ("//evil.example/x", None),
        ("http://127.0.0.1:{port}/base/there?a=1", "/model/there?a=1"),
        ("http://127.0.0.1:{port}/elsewhere", None),
        ("/base/there", "/model/there"),
        ("there", "there"),
    ],
)
async def test_redirects_stay_on_their_route(tmp_path: Path, to: str, wanted: str | None) -> None:
    async with world(tmp_path) as w, w.client() as client:
        answer = await client.get("/model/redirect", params={"to": to.format(port=w.target.port)})
        assert answer.status_code == 302
        assert answer.headers.get("location") == wanted
        assert len(w.target.seen) == 1  # and the gate followed none


async def test_connect_joins_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_unix_connection(w.path())
        # Some clients send the first bytes of the tunnel with the CONNECT.
        writer.write(f"CONNECT 127.0.0.1:{w.target.port} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        writer.write(b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        with anyio.fail_after(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read()
        writer.close()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b'"target": "/echo"' in body
        assert KEY.encode() not in body
        for refused in ("evil.example:443", "127.0.0.1:22", "example.invalid:443", "a.example.invalid:80", "x"):
            got = await w.raw(f"CONNECT {refused} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert int(got.split()[1]) in {400, 403}, refused
        assert (await w.codes(6))[0] is None


async def test_a_plain_proxy_request_gets_no_key(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        here = f"127.0.0.1:{w.target.port}"
        ask = "GET http://{}/base/echo HTTP/1.1\r\nhost: {}\r\nproxy-authorization: x\r\nconnection: close\r\n\r\n"
        got = await w.raw(ask.format(here, here).encode())
        assert b" 200 " in got.split(b"\r\n")[0]
        assert KEY not in got.decode()
        assert "proxy-authorization" not in got.decode()
        assert b" 403 " in (await w.raw(ask.format("evil.example", "evil.example").encode())).split(b"\r\n")[0]


NOWHERE = "0.0.0.0"  # noqa: S104 - not to be bound, but refused


@pytest.mark.parametrize(
    "host", [NOWHERE, "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "localhost"]
)
async def test_private_targets_are_refused_after_the_look_up(tmp_path: Path, host: str) -> None:
    async with world(tmp_path, connect={"all": {"hosts": [f"{host}:81"], "agents": ["helper"]}}) as w:
        got = await w.raw(f"CONNECT {host}:81 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert b" 403 " in got.split(b"\r\n")[0]
        assert (await w.codes(1)) == ["EGRESS_PRIVATE_TARGET"]


SMUGGLED: Mapping[str, bytes] = {
    "both framings": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /model/two HTTP/1.1\r\nhost: x\r\n\r\n",
    "two lengths": b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
    "signed length": b"content-length: +4\r\n\r\nabcd",
    "odd encoding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "encoding twice": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "space before the colon": b"content-length : 4\r\n\r\nabcd",
    "odd chunk": b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a bare newline in a value": b"x: a\n\x00content-length: 4\r\n\r\nabcd",
    "two hosts": b"host: y\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_request_that_two_parsers_read_differently_reaches_nobody(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as w:
        with anyio.fail_after(PATIENCE_S):
            got = await w.raw(b"POST /model/one HTTP/1.1\r\nhost: x\r\n" + SMUGGLED[name])
        assert int(got.split()[1]) in {400, 501}
        assert got.count(b"HTTP/1.1 4") + got.count(b"HTTP/1.1 5") == 1
        assert [path for _, path, _, _ in w.target.seen] == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /model/x HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET /model/x HTTP/1.1\r\n" + b"x: y\r\n" * 30_000 + b"host: x\r\n\r\n", 431),
        (b"TRACE /model/x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", 400),
        (b"GET /model/x HTTP/2.0\r\nhost: x\r\n\r\n", 400),
    ],
)
async def test_hostile_heads_are_answered_and_closed(tmp_path: Path, data: bytes, status: int) -> None:
    async with world(tmp_path) as w:
        with anyio.fail_after(PATIENCE_S):
            got = await w.raw(data)
        assert int(got.split()[1]) == status
        assert w.target.seen == []


async def test_a_head_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_client, "_HEAD_S", 0.05)
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_unix_connection(w.path())
        writer.write(b"GET /model/x HT")
        with anyio.fail_after(PATIENCE_S):
            assert b" 408 " in (await reader.read()).split(b"\r\n")[0]
        writer.close()


async def test_a_thousand_connections_of_one_session_disturb_no_other(tmp_path: Path) -> None:
    async with world(tmp_path, max_connections=16) as w:
        crowd: list[socket.socket] = []
        try:
            for _ in range(1000):
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                crowd.append(sock)
                with contextlib.suppress(BlockingIOError):  # the kernel's queue is full
                    sock.connect(w.path())
            async with w.client("other") as other:
                with anyio.fail_after(PATIENCE_S):
                    assert (await other.get("/other/x")).status_code == 200
        finally:
            for sock in crowd:
                sock.close()
        async with w.client() as helper:
            assert (await helper.get("/model/x", timeout=PATIENCE_S)).status_code == 200


async def test_the_sessions_of_one_agent_leave_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its sessions may hold what the configuration allows; together they could hold what all agents have."""
    monkeypatch.setattr("daemon.egress.gate._ALL_CONNECTIONS", 32)
    async with world(tmp_path, max_connections=16) as w, contextlib.AsyncExitStack() as stack:
        for session in ("s1", "s2", "s3", "s4"):
            await anyio.to_thread.run_sync(w.gate.open, "helper", session)
            folder = w.gate.folder("helper", session)
            assert folder is not None
            for _ in range(16):
                await stack.enter_async_context(await anyio.connect_unix(folder / GATE_SOCKET))
        helper = await stack.enter_async_context(w.client())
        other = await stack.enter_async_context(w.client("other"))
        with anyio.fail_after(PATIENCE_S):
            while (await helper.get("/model/x")).status_code == 200:  # the crowd is still being let in
                await helper.aclose()
                helper = await stack.enter_async_context(w.client())
        assert (await helper.get("/model/x")).headers["x-clawbus-code"] == "EGRESS_BUSY"
        assert [(await other.get("/other/x")).status_code for _ in range(4)] == [200] * 4


async def test_a_restarted_daemon_listens_in_the_same_folder(tmp_path: Path) -> None:
    async with world(tmp_path) as first, first.client() as client:
        assert (await client.get("/model/x")).status_code == 200
        path = first.path()
    async with world(tmp_path) as second, second.client() as client:
        assert second.path() == path  # which a container has mounted
        assert (await client.get("/model/x")).status_code == 200


async def test_an_unreachable_target_is_named(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.client() as client:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with world_with_route(tmp_path / "two", port) as other, other.client() as there:
            answer = await there.get("/gone/x")
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "EGRESS_UPSTREAM"
            assert f"127.0.0.1:{port}" in answer.json()["error"]["message"]
        assert (await client.get("/model/x")).status_code == 200


@asynccontextmanager
async def world_with_route(folder: Path, port: int) -> AsyncGenerator[World]:
    folder.mkdir()
    here = f"127.0.0.1:{port}"
    route = {"upstream": f"http://{here}", "agents": ["helper", "other"]}
    async with world(folder, private_targets=[here], routes={"gone": route}, connect={}) as found:
        yield found


async def test_tokens_are_counted_and_a_budget_stops_in_the_provider_s_own_words(tmp_path: Path) -> None:
    async with world(tmp_path, budgets={"helper": {"tokens_per_day": 100}}) as w, w.client() as client:
        answer = {"content": [], "usage": {"input_tokens": 60, "output_tokens": 15}}
        w.target.bodies["/base/v1/messages"] = (200, "application/json", json.dumps(answer).encode())
        for _ in range(2):
            assert (await client.post("/model/v1/messages", json={})).json() == answer
        assert (await client.get("/model/v1/models")).status_code == 429  # whatever it is: nothing more today
        refused = await client.post("/model/v1/messages", json={})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "150 of 100 tokens" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert int(refused.headers["retry-after"]) > 0
        assert await w.codes(4) == [None, None, "EGRESS_BUDGET", "EGRESS_BUDGET"]
        assert [event.usage for event in w.events] == [Usage(60, 15), Usage(60, 15), Usage(), Usage()]
        assert len(w.target.seen) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the target's certificate")
async def test_the_way_out_is_encrypted_and_the_target_s_name_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=model.test", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, "-out", certificate]
    await anyio.run_process([*map(str, made), "-keyout", str(key)])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    there = Target()
    async with await asyncio.start_server(there.serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        key_file = {"header": "authorization", "secret_file": str(tmp_path / "key"), "agents": ["helper"]}
        table = {
            "private_targets": [f"localhost:{port}", f"127.0.0.1:{port}"],
            "routes": {
                "named": {"upstream": f"https://localhost:{port}", **key_file},
                "other": {"upstream": f"https://127.0.0.1:{port}", "agents": ["helper", "other"]},
            },
        }
        async with world(tmp_path, **table) as w, w.client() as client:
            seen = (await client.get("/named/x")).json()
            assert seen["headers"]["authorization"] == f"Bearer {KEY}"
            answer = await client.get("/other/x")
            assert answer.status_code == 502
            assert "certificate" in answer.json()["error"]["message"]


async def test_a_client_that_asks_first_may_go_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_unix_connection(w.path())
        head = "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        with anyio.fail_after(PATIENCE_S):
            writer.write(head.format("/model/sink").encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(b"hello")
            assert (await reader.read()).endswith(b"\r\n\r\n5")
            writer.close()
            assert (await w.raw(head.format("/nowhere/").encode())).startswith(b"HTTP/1.1 403 ")  # without the body


async def test_requests_that_are_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one = "GET /model/{} HTTP/1.1\r\nhost: x\r\n{}\r\n"
        with anyio.fail_after(PATIENCE_S):
            got = await w.raw(
                (one.format("a", "") + one.format("b", "") + one.format("c", "connection: close\r\n")).encode()
            )
        assert got.count(b"HTTP/1.1 200 ") == 3
        assert [path for _, path, _, _ in w.target.seen] == ["/base/a", "/base/b", "/base/c"]
        assert w.target.connections == 1  # and the target's connection was used again
