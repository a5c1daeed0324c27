"""Checks where answers are to go, before anything is stored: what no channel can send to is refused at the door. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from daemon.core.destinations import AGENT_CHANNEL
from daemon.core.errors import MessageError
from schema.rows import Address

MAX_ADDRESS_BYTES: Final = 1000
MAX_NAME: Final = 200  # characters of a mailbox's name


def is_mailbox_name(name: str) -> bool:
    """Return whether a mailbox may have this name: 1 to MAX_NAME printable characters."""
    return 1 <= len(name) <= MAX_NAME and name.isprintable()


def check_channel(name: str, known: Collection[str]) -> None:
    """Raise MessageError unless a channel of this name is configured: it would keep the answer until somebody adds one."""
    if name not in known and name != AGENT_CHANNEL:
        there = ", ".join(sorted(known)) or "none"
        raise MessageError(
            f"no channel {name[:MAX_NAME]!r} is configured (known: {there}).",
            hint="Name one that `clawbus channel list` lists.",
        )


def check_address(address: Address) -> None:
    """Raise MessageError unless it names a channel and a place in text that SQLite can hold."""
    parts = (address.channel_type, address.platform_id, address.thread_id or "-")
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError as error:
        raise MessageError("the address holds text that is not Unicode (a lone surrogate).") from error
    if not all(0 < size <= MAX_ADDRESS_BYTES for size in sizes):
        raise MessageError(f"each part of an address has 1 to {MAX_ADDRESS_BYTES} bytes.")
    if address.channel_type == "local" and not is_mailbox_name(address.platform_id):
        # Refuse it now: otherwise its answer would become a dead letter after all the work.
        raise MessageError(
            f"{address.platform_id[:MAX_NAME]!r} is not a valid mailbox name.",
            hint=f"Use 1 to {MAX_NAME} printable characters.",
        )
