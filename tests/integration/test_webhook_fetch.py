"""Files that a request names by URL, from a real HTTP server: only from hosts that the hook allows, and never a private one."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import AsyncGenerator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from daemon.channels.webhook import WebhookChannel
from daemon.channels.webhook_fetch import FileFetcher, checked_url
from daemon.channels.webhook_refusals import BodyRefusedError, FileFetchError
from daemon.channels.webhook_uploads import NamedUrl
from daemon.core.attachments import Attachment
from daemon.core.errors import BodyTooLargeError
from daemon.http.resolver import Resolver
from tests.integration.test_webhook_in import Served, refused, table
from tests.support.channels import SECRET, SetClock, build, running

pytestmark = pytest.mark.anyio


class Host(ThreadingHTTPServer):
    """A host of files; `asked` are the paths that were asked for. `/slow` waits for `release`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str]] = []
        self.release = threading.Event()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Host  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append((self.path, str(self.headers["host"])))
        if self.path == "/slow":
            self.server.release.wait(30)
        status = int(self.path[1:]) if self.path[1:].isdigit() else 200
        self.send_response(status)
        if status == 302:
            self.send_header("location", f"http://{self.server.place}/a.txt")
        self.end_headers()  # no length: the end of the connection ends the file
        self.wfile.write(b"x" * 5000 if self.path == "/large" else b"first")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def fetcher(*, max_bytes: int = 1000, total_s: float = 30.0) -> FileFetcher:
    """One for which this machine's own address is a public one."""
    return FileFetcher(Resolver(SetClock()), max_bytes, total_s, lambda address: address == "127.0.0.1")


async def fetch(
    made: FileFetcher, host: Host, *paths: str, before: tuple[Attachment, ...] = ()
) -> tuple[Attachment, ...]:
    urls = [NamedUrl(path.rpartition("/")[2], f"http://{host.place}{path}") for path in paths]
    async with made.open(ssl.create_default_context()):
        return await made.fetch(urls, [host.place], before)


async def test_files_are_downloaded_under_clean_names_of_their_own(host: Host) -> None:
    found = await fetch(fetcher(), host, "/x/a.txt?key=1", "/a.txt", before=(Attachment("a.txt", b""),))
    assert [one.data for one in found] == [b"first", b"first"]
    assert [one.name for one in found] == ["a.txt?key=1", "a-2.txt"]
    assert host.asked[0] == ("/x/a.txt?key=1", host.place)


async def test_the_agents_of_one_event_share_a_download_and_a_failed_one_is_tried_again(host: Host) -> None:
    made = fetcher()
    files = made.later([NamedUrl("a.txt", f"http://{host.place}/a.txt")], [host.place], ())
    gone = made.later([NamedUrl("b", f"http://{host.place}/503")], [host.place], ())
    assert files is not None
    assert gone is not None
    assert made.later([], [host.place], ()) is None
    async with made.open(ssl.create_default_context()):
        assert await files.fetch() == await files.fetch() == (Attachment("a.txt", b"first"),)
        for _ in range(2):
            with pytest.raises(FileFetchError):
                await gone.fetch()
    assert [path for path, _ in host.asked] == ["/a.txt", "/503", "/503"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/302", BodyRefusedError),
        ("/404", BodyRefusedError),
        ("/403", BodyRefusedError),
        ("/429", FileFetchError),
        ("/503", FileFetchError),
        ("/large", BodyTooLargeError),
    ],
)
async def test_what_is_no_file_is_refused_or_tried_again(host: Host, path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await fetch(fetcher(), host, path)
    assert [asked for asked, _ in host.asked] == [path], "a redirect is not followed"


async def test_a_host_that_is_slow_or_away_is_not_the_sender_s_fault(host: Host) -> None:
    with pytest.raises(FileFetchError, match=r"within 0\.2 s"):
        await fetch(fetcher(total_s=0.2), host, "/slow")
    made = fetcher()
    async with made.open(ssl.create_default_context()):
        with anyio.fail_after(60), pytest.raises(FileFetchError):
            await made.fetch([NamedUrl("a", "http://127.0.0.1:1/a")], ["127.0.0.1:1"], ())


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://files.example.org/a", "/a", "", "http://", "https://user@files.example.org/a",
        "https://files.example.org:444/a", "http://files.example.org/a", "https://files.example.org.evil.org/a",
        "https://evil.org/files.example.org:443", "https://evil.org#@files.example.org/a", "https://evil.org\\@files.example.org/",
        "https://example.net/a", "https://xexample.net/a", "https://[::1]/a", "https://f\u0456les.example.org/a",
    ],
)  # fmt: skip
def test_only_allowed_hosts_are_asked(url: str) -> None:
    with pytest.raises(BodyRefusedError):
        checked_url(url, ["files.example.org:443", "*.example.net:443"])


def test_an_allowed_host_is_asked_for_what_the_url_says() -> None:
    found = checked_url("https://FILES.example.org/a b?c=d#e", ["files.example.org:443"])
    assert (found.host, found.target) == (b"files.example.org", b"/a%20b?c=d")
    assert checked_url("https://a.b.example.net/", ["*.example.net:443"]).port == 443


# --- the whole channel


@pytest.fixture
async def served(host: Host, tmp_path: Path) -> AsyncGenerator[Served]:
    clock = SetClock()
    settings = table()
    ours = {"agent": "a", "session": "s", "secret": SECRET}
    port = host.server_address[1]
    settings["hooks"] = {
        "ours": {**ours, "file_hosts": [host.place, f"localhost:{port}", f"[::1]:{port}"]},
        "other": ours,
    }
    channel: WebhookChannel = build(WebhookChannel, "webhook", settings, tmp_path, clock)
    async with running(channel) as bus:
        assert channel.bound_address is not None
        base = "http://{}:{}".format(*channel.bound_address)
        async with httpx.AsyncClient(base_url=base, timeout=30.0) as client:
            yield Served(channel, bus, client, clock)


def body(*files: Any) -> bytes:
    return json.dumps({"text": "x", "files": files}).encode()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
async def test_an_allowed_name_that_leads_to_this_machine_is_never_connected_to(
    served: Served, host: Host, name: str
) -> None:
    answer = await served.send(body({"url": f"http://{name}:{host.server_address[1]}/a.txt"}))
    assert "not at a public address" in refused(answer, 400, "BODY_INVALID")["error"]["message"]
    assert (host.asked, served.bus.messages) == ([], [])


async def test_a_hook_without_file_hosts_asks_nobody_and_passes_the_body_on(served: Served, host: Host) -> None:
    files = {"url": f"http://{host.place}/a.txt"}
    assert (await served.send(body(files), path="/hooks/other")).status_code == 202
    [incoming] = served.bus.messages
    assert isinstance(incoming.content, dict)
    assert (incoming.content["body"]["files"], incoming.files, host.asked) == ([files], (), [])


async def test_nothing_is_asked_for_before_the_signature_is_right(served: Served, host: Host) -> None:
    answer = await served.post("/hooks/ours", body({"url": f"http://{host.place}/a.txt"}), {})
    refused(answer, 401, "SIGNATURE_REFUSED")
    assert host.asked == []
