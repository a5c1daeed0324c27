"""Addresses that we listen on: what is a machine's own, what is refused, and why."""

import socket
from pathlib import Path

import anyio
import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from daemon.config.addresses import bind_tcp, bound_address, is_loopback
from daemon.config.loading import load_config
from daemon.core.errors import ConfigError, ListenError
from daemon.http.connections import ConnectionLimits
from daemon.monitoring.http import run_listener


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1")],
        *[(host, False) for host in ("0.0.0.0", "10.0.0.1", "192.168.1.1", "8.8.8.8", "::", "fe80::1", "2001:db8::1")],  # noqa: S104
    ],
)
def test_loopback_is_what_nobody_else_reaches(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_port_that_is_taken_is_a_refusal_that_names_it() -> None:
    with bind_tcp("127.0.0.1:0") as first:
        host, port = bound_address(first)
        with pytest.raises(ListenError, match=f"cannot listen on {host}:{port}: Address already in use") as refused:
            bind_tcp(f"{host}:{port}")
    assert refused.value.hint


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:0"):
        bind_tcp("192.0.2.1:0")


def configured(tmp_path: Path, keys: str) -> str:
    path = tmp_path / "clawbus.toml"
    path.write_text(f"[telemetry]\n{keys}\n", encoding="utf-8")
    return load_config(path).telemetry.listen


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9464", "localhost:9464", "[::1]:9464"])
def test_loopback_may_be_listened_on(tmp_path: Path, listen: str) -> None:
    assert configured(tmp_path, f'listen = "{listen}"') == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464", "203.0.113.7:9464"])
def test_any_other_address_only_when_told(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.listen: .*is not a loopback address.*allow_remote = true"):
        configured(tmp_path, f'listen = "{listen}"')
    # The order of the keys in the file does not matter.
    assert configured(tmp_path, f'listen = "{listen}"\nallow_remote = true') == listen


@pytest.mark.parametrize("listen", ["9464", "example.org:9464", "127.0.0.1", "127.0.0.1:99999", "::1:9464"])
def test_what_is_no_address_is_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.listen: "):
        configured(tmp_path, f'listen = "{listen}"')


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4318", "ftp://h", "http://", "http://me:secret@h:4318", "http://h/?a=b", "http://h:x"]
)
def test_what_is_no_collector_s_url_is_refused(tmp_path: Path, url: str) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(f'[telemetry]\notlp_endpoint = "{url}"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint: "):
        load_config(path)


@pytest.mark.anyio
async def test_the_listener_serves_its_routes_and_ends() -> None:
    async def hello(_: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    host, port = "", 0
    async with anyio.create_task_group() as tasks:
        host, port = await tasks.start(run_listener, "127.0.0.1:0", [Route("/metrics", hello)])
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as http:
            assert (await http.get("/metrics")).text == "hello"
            lost = await http.get("/v1/status")
            assert (lost.status_code, "/metrics" in lost.text) == (404, True)
            posted = await http.post("/metrics")
            assert (posted.status_code, "GET" in posted.headers["allow"]) == (405, True)
        tasks.cancel_scope.cancel()
    with socket.socket() as probe:
        assert probe.connect_ex((host, port)) != 0


@pytest.mark.anyio
async def test_a_connection_without_a_further_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.monitoring.http._LIMITS", ConnectionLimits(10, 10, patience_s=0.1))
    async with anyio.create_task_group() as tasks:
        host, port = await tasks.start(run_listener, "127.0.0.1:0", [])
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
            with anyio.fail_after(30):
                assert b" 404 " in await stream.receive()
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_root_lists_the_pages() -> None:
    async with anyio.create_task_group() as tasks:
        host, port = await tasks.start(run_listener, "127.0.0.1:0", [])
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            with anyio.fail_after(30):
                answer = b"".join([piece async for piece in stream])
        assert b" 200 " in answer.split(b"\r\n")[0]
        assert all(page in answer for page in (b"/metrics", b"/healthz", b"/readyz"))
        tasks.cancel_scope.cancel()
