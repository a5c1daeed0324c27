"""Which runs the server's last queue snapshot still names: it is loaded at the next start, and such a run may come back.

The snapshot is the server's own format and only searched for ids; that a run is not in it proves nothing while the
server is up, because its queue then lives in its memory or in Redis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from daemon.inngest.database import Shape
from schema.connect import Reader

_OVERLAP: Final = 64  # bytes carried over from chunk to chunk: an id may lie across two


def queued_keys(reader: Reader, shape: Shape, keys: Iterable[str]) -> frozenset[str]:
    """Those of these runs that the newest snapshot names."""
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
