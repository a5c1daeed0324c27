"""An entry of a mailbox (an answer, a question or a notice) as the commands show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from daemon.core.content import answered_ids, decode, error_of, text_of
from daemon.core.printable import counted
from daemon.core.sent_files import read_manifest

if TYPE_CHECKING:
    from daemon.store.mailbox import MailboxEntry


def as_result(entry: MailboxEntry) -> dict[str, Any]:
    """Return the entry for an envelope: with its content decoded, its text, and its error if it has one."""
    return {
        "text": text_of(entry.content),
        "content": decode(entry.content),
        "error": error_of(entry.content),
        "cursor": entry.cursor,
        "mailbox": entry.mailbox,
        "message_out_id": entry.message_out_id,
        "in_reply_to": entry.in_reply_to,
        "answers": []
        if not entry.final
        else sorted({*answered_ids(entry.content), *((entry.in_reply_to,) if entry.in_reply_to else ())}),
        "agent": entry.agent,
        "session": entry.session,
        "kind": entry.kind,
        "thread_id": entry.thread_id,
        "delivered_at": entry.delivered_at,
        "final": entry.final,
        **_files(entry),
    }


def _files(entry: MailboxEntry) -> dict[str, Any]:
    """Return the entry's files and those that were refused, if there are any."""
    try:
        found = read_manifest(entry.files)
    except (ValueError, KeyError, TypeError):
        return {}
    listed = {name: value for name, value in found.to_json().items() if value}
    return {("files_refused" if name == "refused" else name): value for name, value in listed.items()}


def file_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each file of an entry: where it was saved, or what it is; and one for each that was refused."""
    for one in answer.get("files", ()):
        saved = one.get("saved")
        size = f"{counted(one['size'], 'byte')}, {one['mimeType']}"
        yield f"[file {one['name']}: {size}]" if saved is None else f"[file {saved}: {size}]"
    for one in answer.get("files_refused", ()):
        yield f"[not sent: {one['name']} {one['reason']}]"


def question_of(answer: Mapping[str, Any]) -> str | None:
    """Return the id of the question that an entry asks, or None."""
    content = answer["content"]
    fields = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    asked = fields.get("question") if fields.get("type") == "question" else None
    return asked if isinstance(asked, str) else None


def lines_of(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines to show for an entry that is not an answer: its text; for a question, its options and how to answer."""
    mark = "? " if question_of(answer) is not None else "* "
    for number, line in enumerate(str(answer["text"]).splitlines() or [""]):
        yield f"{mark if number == 0 else '  '}{line}"
    yield from (f"  {line}" for line in file_lines(answer))
    identity = question_of(answer)
    if identity is None:
        return
    options = cast("dict[str, Any]", answer["content"]).get("options")
    for number, option in enumerate(cast("list[Any]", options) if isinstance(options, list) else [], 1):
        label = cast("dict[str, Any]", option).get("label") if isinstance(option, dict) else option
        yield f"  {number} {label}"
    yield f"  (clawbus question answer {identity} TEXT)"
