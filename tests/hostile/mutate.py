"""One mutation of a database and its journal from a seed: what a fuzz case is. Pure; the same seed gives the same bytes."""

import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Final

from tests.hostile.corpus import Pair

_INTERESTING: Final = (0, 1, 2, 3, 4, 5, 7, 10, 13, 16, 32, 64, 127, 128, 254, 255)
_LONG: Final = (0, 1, 2, 100, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 512, 4096, 65536)
# Offsets of the database's header, with their width (sqlite.org/fileformat2.html#the_database_header).
_HEADER: Final = (
    (16, 2), (18, 1), (19, 1), (20, 1), (21, 1), (22, 1), (23, 1), (24, 4), (28, 4), (32, 4), (36, 4), (40, 4), (44, 4),
    (48, 4), (52, 4), (56, 4), (60, 4), (64, 4), (68, 4), (92, 4), (96, 4), (100, 1), (101, 2), (103, 2), (105, 2),
)  # fmt: skip
_JOURNAL_HEADER: Final = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 4), (24, 4))
_SCHEMA: Final = (
    (b"CREATE TABLE", b"CREATE VIEW "), (b"CREATE TABLE", b"CREATE INDEX"), (b"PRIMARY KEY", b"AS (id||id)"),
    (b"TEXT NOT NULL", b"AS (randomb())"), (b"messages_out", b"MESSAGES_OUT"), (b"messages_out", b"sqlite_maste"),
    (b"messages_out", b"container_st"), (b"INTEGER UNIQUE", b"INT AS (seq+1)"), (b"TEXT", b"BLOB"), (b"(", b" "),
    (b"table", b"view "), (b"index", b"table"), (b"processing_ack", b"messages_out,("), (b"TEXT", b"\xff\xfe\x00A"),
    (b"NOT NULL", b"CHECK(1)"), (b"'processing'", b"randomblob(9)"), (b"status", b"rowid "),
)  # fmt: skip


def mutate(corpus: Sequence[Pair], seed: str) -> tuple[str, bytes, bytes | None]:
    """What was done, the database and the journal (None: there is none)."""
    rng = random.Random(seed)
    base = rng.choice(corpus)
    data = bytearray(base.database)
    journal = bytearray(base.journal) if base.journal is not None else None
    done = [base.name]
    if rng.random() < 0.02:
        return "random bytes", _noise(rng, rng.randrange(0, 20_000)), None
    if rng.random() < 0.02:
        return "random bytes after a header", base.database[:100] + _noise(rng, rng.randrange(0, 20_000)), None
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if journal is not None and rng.random() < 0.5:
            what = rng.choice(_ON_JOURNAL)
            what(journal, rng)
        else:
            what = rng.choice(_ON_DATABASE)
            what(data, rng)
        done.append(what.__name__.strip("_"))
    if journal is None and rng.random() < 0.1:
        other = rng.choice([one for one in corpus if one.journal is not None])
        journal = bytearray(other.journal or b"")
        done.append(f"the journal of {other.name}")
        if rng.random() < 0.5:
            rng.choice(_ON_JOURNAL)(journal, rng)
    return ", ".join(done), bytes(data), bytes(journal) if journal is not None else None


def _noise(rng: random.Random, size: int) -> bytes:
    return rng.randbytes(size)


def _page_size(data: bytearray) -> int:
    size = int.from_bytes(data[16:18], "big") if len(data) > 18 else 4096
    return 65536 if size == 1 else size if size >= 512 else 4096


def _bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 32, 256))):
        if data:
            data[rng.randrange(len(data))] = rng.choice(_INTERESTING)


def _random_run(data: bytearray, rng: random.Random) -> None:
    if data:
        start, size = rng.randrange(len(data)), rng.choice((4, 64, 512, 4096))
        data[start : start + size] = rng.randbytes(len(data[start : start + size]))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _cut_at_page(data: bytearray, rng: random.Random) -> None:
    pages = len(data) // _page_size(data)
    del data[rng.randrange(pages + 1) * _page_size(data) :]


def _grow(data: bytearray, rng: random.Random) -> None:
    data += rng.choice((bytes, rng.randbytes))(rng.choice((1, 512, 4096, 70_000)))


def _header(data: bytearray, rng: random.Random) -> None:
    _field(data, rng, *rng.choice(_HEADER))


def _field(data: bytearray, rng: random.Random, offset: int, width: int) -> None:
    if len(data) >= offset + width:
        value = rng.choice((rng.choice(_LONG), rng.getrandbits(8 * width), rng.choice(_INTERESTING)))
        data[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")


def _swap_pages(data: bytearray, rng: random.Random) -> None:
    size, pages = _page_size(data), len(data) // _page_size(data)
    if pages > 1:
        one, two = (rng.randrange(pages) * size for _ in range(2))
        data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def _copy_page(data: bytearray, rng: random.Random) -> None:
    size, pages = _page_size(data), len(data) // _page_size(data)
    if pages > 1:
        one, two = rng.randrange(pages) * size, rng.randrange(1, pages) * size
        data[two : two + size] = data[one : one + size]


def _page_header(data: bytearray, rng: random.Random) -> None:
    """The tree's own structure: type, cell count, right child, cell pointers, child pointers (b-tree page format)."""
    size, pages = _page_size(data), max(1, len(data) // _page_size(data))
    start = rng.randrange(pages) * size
    start += 100 if start == 0 else 0
    offset, width = rng.choice(
        ((0, 1), (1, 2), (3, 2), (5, 2), (7, 1), (8, 4), (12, 2), (14, 2), (rng.randrange(8, 200), 2))
    )
    if offset == 0 and len(data) > start:
        data[start] = rng.choice((2, 5, 10, 13, rng.randrange(256)))
    else:
        _field(data, rng, start + offset, width)


def _loop(data: bytearray, rng: random.Random) -> None:
    """Children that are their own parents, or the same child many times."""
    size, pages = _page_size(data), len(data) // _page_size(data)
    interior = [n for n in range(pages) if data[n * size + (100 if n == 0 else 0)] in (2, 5)]
    if not interior:
        return _page_header(data, rng)
    number = rng.choice(interior)
    start = number * size + (100 if number == 0 else 0)
    child = rng.choice((number + 1, rng.randrange(1, pages + 1)))
    data[start + 8 : start + 12] = child.to_bytes(4, "big")
    count = int.from_bytes(data[start + 3 : start + 5], "big")
    for index in range(min(count, 200)):
        where = start + 12 + 2 * index
        cell = number * size + int.from_bytes(data[where : where + 2], "big")
        if cell + 4 <= len(data) and rng.random() < 0.8:
            data[cell : cell + 4] = child.to_bytes(4, "big")
    return None


def _schema(data: bytearray, rng: random.Random) -> None:
    for old, new in rng.sample(_SCHEMA, rng.choice((1, 1, 2, 4))):
        found = [match.start() for match in re.finditer(re.escape(old), data)]
        if found:
            start = rng.choice(found)
            patch = new[: len(old)].ljust(len(old))
            data[start : start + len(old)] = patch


def _wal_mode(data: bytearray, rng: random.Random) -> None:
    if len(data) > 20:
        data[18:20] = rng.choice((b"\x02\x02", b"\x01\x02", b"\x02\x01", b"\x03\x03"))


def _journal_header(data: bytearray, rng: random.Random) -> None:
    _field(data, rng, *rng.choice(_JOURNAL_HEADER))


def _journal_record(data: bytearray, rng: random.Random) -> None:
    """A page number or a checksum; the records follow the header's sector, each a number, a page and a checksum."""
    count = (len(data) - 512) // 4104
    if count > 0:
        start = 512 + rng.randrange(count) * 4104
        _field(data, rng, *rng.choice(((start, 4), (start + 4100, 4), (start + 4 + 18, 2))))


def _super_journal(data: bytearray, rng: random.Random) -> None:
    name = rng.choice((b"/etc/hostname", b"outbound.db", b"../in/inbound.db", b"x" * 300, b"\0"))
    checksum = sum(struct.unpack(f"{len(name)}b", name)) & 0xFFFFFFFF
    data += struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">II", len(name), checksum)
    data += bytes.fromhex("d9d505f920a163d7")
    if rng.random() < 0.3:
        data[-rng.randrange(1, 9)] ^= 1 << rng.randrange(8)


def _empty(data: bytearray, rng: random.Random) -> None:
    data[:] = rng.choice((b"", b"\0" * 28, b"\0" * 512, b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"))


Mutation = Callable[[bytearray, random.Random], None]
_ON_DATABASE: Final[tuple[Mutation, ...]] = (
    _bits, _bytes, _random_run, _cut, _cut_at_page, _grow, _header, _header, _swap_pages, _copy_page, _page_header,
    _page_header, _page_header, _loop, _loop, _schema, _schema, _wal_mode,
)  # fmt: skip
_ON_JOURNAL: Final[tuple[Mutation, ...]] = (
    _bits, _bytes, _random_run, _cut, _grow, _journal_header, _journal_header, _journal_record, _journal_record,
    _super_journal, _empty,
)  # fmt: skip
