"""What the gate adds: a request's latency, an event's delay with many streams at once, and memory for a large body.

The whole way is measured: the client on the runner's forwarder, the gate in a real daemon, a target in a process of its own. The
floor is the same client at the same target in turn: directly, and over two bare relays, which is as many processes as runner and
gate are. `python -m bench.egress` is the target, `python -m bench.egress PORT` a relay; they import nothing of the product.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

from bench.figures import Figure, Of, Result, Target
from bench.settings import Settings
from bench.spread import noise, percentile, spread
from bench.stage import BenchFailed, BenchStage

_HOST: Final = "127.0.0.1"
_REQUESTS: Final = 600
_BLOCK: Final = 30
_STREAMS: Final = 100
_EVENTS: Final = 40
_EVERY_S: Final = 0.05
_BODY: Final = 64 * 1024**2
_PIECE: Final = 64 * 1024
_ANSWER_S: Final = 60.0
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_NOTE: Final = (
    "Processor time says what the gate costs where others use the processors too: then each of a request's six hops between processes"
    " waits for its turn. A delay is from the target's write to the client's read of an event; all streams send theirs at the same moments, so a delay"
    " holds the work on all of them. Memory is how far the daemon's resident size rose while the body passed."
)


def measure(settings: Settings) -> Result:
    """Latency, then streams, then a body, each directly and through the gate."""
    with ExitStack() as processes:
        port = _process(processes)
        relay = _process(processes, _process(processes, port))
        (settings.folder / "key").write_text("sk-bench", encoding="utf-8")
        with BenchStage(settings.folder, tables=_tables(port, settings.folder / "key")) as stage:
            stage.start()
            gate = _gate_of(stage)
            return asyncio.run(_measure(settings, stage, (_HOST, port, ""), (_HOST, relay, ""), gate))


def _process(processes: ExitStack, *relay_to: int) -> int:
    """Start a target, or a relay to a port, and return its own port."""
    command = [sys.executable, "-m", "bench.egress", *map(str, relay_to)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    processes.callback(started.communicate)
    processes.callback(started.kill)
    assert started.stdout is not None
    return int(started.stdout.readline())


def _tables(port: int, key: Path) -> str:
    return f"""
[egress]
private_targets = ["127.0.0.1:{port}"]
[egress.routes.target]
upstream = "http://127.0.0.1:{port}"
header = "x-api-key"
secret_file = {json.dumps(str(key))}
agents = ["asks"]
api = "anthropic"
env = {{ TARGET = "{{url}}" }}
[agents.asks]
command = ["sh", "-c", "echo $TARGET"]
"""


_Way = tuple[str, int, str]


def _gate_of(stage: BenchStage) -> _Way:
    """Where the agent's programs find the gate; its container lives on."""
    with stage.client() as client:
        address = {"channel_type": "local", "platform_id": "bench"}
        asked = client.accept({"agent": "asks", "session": "s", "content": {"text": "where?"}, "address": address})
        entry = client.wait_reply("asks", "s", asked["message_id"], _ANSWER_S)
    if entry is None:
        raise BenchFailed(f"the agent did not answer:\n{stage.tail()}")
    _, _, rest = str(json.loads(entry.content)["text"]).partition("//")
    place, _, path = rest.partition("/")
    host, _, port = place.partition(":")
    return host, int(port), f"/{path}"


async def _measure(settings: Settings, stage: BenchStage, direct: _Way, relay: _Way, gate: _Way) -> Result:
    blocks: dict[_Way, list[list[float]]] = {direct: [], relay: [], gate: []}
    connections = {way: await asyncio.open_connection(*way[:2]) for way in blocks}
    for count in range(1 + settings.count(_REQUESTS, _BLOCK) // _BLOCK):
        for way, (reader, writer) in connections.items():
            block = [await _request(reader, writer, way) for _ in range(_BLOCK)]
            blocks[way] += [block] if count else []  # the first is the warm-up
    count = settings.count(_REQUESTS, _BLOCK)
    began = stage.usage().cpu_s + stage.agents_usage().cpu_s
    for _ in range(count):
        await _request(*connections[gate], gate)
    cpu_ms = (stage.usage().cpu_s + stage.agents_usage().cpu_s - began) / count * 1000
    for _, writer in connections.values():
        writer.close()
    floor, hops, value = (spread([one for block in blocks[way] for one in block]) for way in blocks)
    streams, events = settings.count(_STREAMS, 5), settings.count(_EVENTS, 5)
    delays = {way: await _streams(way, streams, events) for way in (direct, gate, direct, gate)}
    if any(len(found) != streams * events for found in delays.values()):
        raise BenchFailed("a stream lost events")
    size = settings.count(_BODY, 1024**2)
    seconds = {way: await _body(way, size) for way in (direct, gate)}
    before = stage.usage().rss_bytes
    rose = await _body_watched(gate, size, stage)
    figures = (
        Figure("a request: added by the gate, p50", value.p50 - floor.p50, "ms", None, Target(Of.VALUE, 3.0)),
        Figure("processor time of a request, daemon and runner", cpu_ms, "ms", None, Target(Of.VALUE, 3.0)),
        Figure("a request, p50", value.p50, "ms", floor.p50, spread=f"p99 {value.p99:.2f}, direct {floor.p99:.2f} ms"),
        Figure("the same beside two bare relays, p50", value.p50, "ms", hops.p50, spread=f"relays' p99 {hops.p99:.2f} ms"),
        *(
            Figure(
                f"{streams} streams at once: delay of an event, {name}", percentile(delays[gate], share), "ms",
                percentile(delays[direct], share),
            )
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ),
        Figure(f"a body of {size // 1024**2} MiB up and down", seconds[gate], "s", seconds[direct]),
        Figure("copies of that body in the daemon's memory", max(0, rose - before) / size, "", None, Target(Of.VALUE, 1.0)),
    )  # fmt: skip
    return Result(figures, (_NOTE,), noisy=noise(blocks[direct]))


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Way) -> float:
    """Milliseconds of one request on a connection that stays open."""
    body = b'{"model": "m", "messages": []}'
    began = time.perf_counter()
    writer.write(_post(f"{way[2]}/v1/messages", len(body)) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchFailed(f"an answer was {head[:60]!r}")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    return (time.perf_counter() - began) * 1000


async def _streams(way: _Way, count: int, events: int) -> list[float]:
    """Milliseconds from write to read of every event of `count` streams at once."""

    async def one() -> list[float]:
        reader, writer = await asyncio.open_connection(*way[:2])
        writer.write(_post(f"{way[2]}/stream/{count}/{events}", 0))
        await reader.readuntil(b"\r\n\r\n")
        found: list[float] = []
        async for line in reader:
            if line.startswith(b"data: "):
                found.append((time.perf_counter_ns() - int(line[6:])) / 1e6)
            if line == b"0\r\n":
                break
        writer.close()
        return found

    return [delay for found in await asyncio.gather(*(one() for _ in range(count))) for delay in found]


async def _body(way: _Way, size: int) -> float:
    """Seconds of a body of `size` bytes to the target and back."""
    reader, writer = await asyncio.open_connection(*way[:2])
    began = time.perf_counter()
    writer.write(_post(f"{way[2]}/body", size))
    piece = b"x" * _PIECE
    for sent in range(0, size, _PIECE):
        writer.write(piece[: size - sent])
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while left > 0 and (found := await reader.read(_PIECE)):
        left -= len(found)
    writer.close()
    if left:
        raise BenchFailed("a body came back short")
    return time.perf_counter() - began


async def _body_watched(way: _Way, size: int, stage: BenchStage) -> int:
    """Pass a body and return the highest resident size of the daemon meanwhile, in bytes."""
    highest = 0
    done = asyncio.create_task(_body(way, size))
    while not done.done():
        highest = max(highest, stage.usage().rss_bytes)
        await asyncio.sleep(0.005)
    await done
    return highest


def _post(path: str, size: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: t\r\nx-api-key: none\r\ncontent-length: {size}\r\n\r\n".encode()


# --- the target


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    answer = json.dumps({"usage": {"input_tokens": 1, "output_tokens": 1}}).encode()
    plain = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer)
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        path = head.split()[1].decode()
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        for taken in range(0, size, _PIECE):
            await reader.readexactly(min(_PIECE, size - taken))
        if path.startswith("/stream/"):
            await _stream(writer, *map(int, path.split("/")[2:]))
        elif path == "/body":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for sent in range(0, size, _PIECE):
                writer.write(b"y" * min(_PIECE, size - sent))
                await writer.drain()
        else:
            writer.write(plain)


_OPEN: Final[list[asyncio.StreamWriter]] = []


async def _stream(writer: asyncio.StreamWriter, count: int, events: int) -> None:
    """Wait until all streams are open; the last one then sends for all of them."""
    writer.write(_HEAD)
    _OPEN.append(writer)
    if len(_OPEN) < count:
        return
    streams, _OPEN[:] = list(_OPEN), []
    for _ in range(events):
        await asyncio.sleep(_EVERY_S)
        for one in streams:
            data = b"data: %d\n\n" % time.perf_counter_ns()
            one.write(b"%x\r\n%s\r\n" % (len(data), data))
    for one in streams:
        one.write(b"0\r\n\r\n")


async def _relay(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, away = await asyncio.open_connection(_HOST, port)
    await asyncio.gather(_pass_on(reader, away), _pass_on(there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _listen(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    server = await asyncio.start_server(serve, _HOST, 0, limit=4 * _PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_listen(partial(_relay, int(sys.argv[1])) if len(sys.argv) > 1 else _serve))
