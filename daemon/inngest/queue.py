"""Examines the server's queue: which runs its last snapshot names, and whether it is proved to be gone.

Servers up to v1.8.1 saved a queue in memory to `queue_snapshot_chunks` and loaded it at the next start. Later ones never write
there: without Redis each restart loses all that was queued, sleeping, waiting or in flight. The snapshot is the server's own
format and only searched for ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from daemon.inngest.database import Shape
from daemon.inngest.holders import Holder, Queue
from daemon.inngest.plan import Scope
from schema.handles import Reader

_OVERLAP: Final = 64  # bytes carried over from chunk to chunk: an id may lie across two


def with_proof(scope: Scope, reader: Reader, shape: Shape, holders: Sequence[Holder]) -> Scope:
    """Return the scope with the time until which the queue is proved lost: the start of a memory queue's server."""
    servers = [one for one in holders if one.queue is not None]
    starts = [one.started_at for one in servers if one.queue is Queue.MEMORY and one.started_at is not None]
    if scope.lost_before_ms is not None or not servers or len(starts) != len(servers):
        return scope
    if shape.has("queue_snapshot_chunks") and reader.one("SELECT 1 FROM queue_snapshot_chunks LIMIT 1") is not None:
        return scope
    return replace(scope, lost_before_ms=min(starts))


def queued_keys(reader: Reader, shape: Shape, keys: Iterable[str]) -> frozenset[str]:
    """Return those of these runs that the newest snapshot names."""
    wanted = {key: key.encode() for key in keys}
    if not wanted or not shape.has("queue_snapshot_chunks", "snapshot_id", "chunk_id", "data"):
        return frozenset()
    newest = "(SELECT max(snapshot_id) FROM queue_snapshot_chunks)"
    numbers = reader.all(f"SELECT chunk_id FROM queue_snapshot_chunks WHERE snapshot_id = {newest} ORDER BY chunk_id")
    found: set[str] = set()
    tail = b""
    for number in numbers:
        row = reader.one(
            f"SELECT data FROM queue_snapshot_chunks WHERE snapshot_id = {newest} AND chunk_id = ?",
            (number["chunk_id"],),
        )
        data = row["data"] if row is not None else None
        chunk = tail + (data.encode() if isinstance(data, str) else data or b"")
        found |= {key for key, text in wanted.items() if text in chunk}
        tail = chunk[-_OVERLAP:]
    return frozenset(found)
