"""Rules about a session's files and folder: quarantine, files that cannot be read, work that fails, room. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from daemon.core.diagnosis import Choice, Diagnosis
from daemon.core.facts import DaemonState, HostFacts, SessionFacts
from daemon.core.host_repairs import BACKUPS, exhausted_repair, unlocking
from daemon.core.host_rules import TOO_NEW, UPGRADE, disk_full, host_trouble
from daemon.core.session_finding import GRACE_MS, finding, quoted
from schema.errors import FileBusyError, HostTroubleError, StorageError, UnusableFileError
from schema.instants import to_text
from schema.layout import OUTBOUND_DB

_FAILURES: Final = 3  # work that failed this often in a row is reported at once


def quarantined(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report that the session is in quarantine, and how to get it out."""
    if one.quarantined_at is None:
        return None
    reason = one.quarantine_reason or "No reason was recorded."
    evidence = (f"Since {to_text(one.quarantined_at)}: {reason}", *one.errors)
    summary = "The session is in quarantine."
    if _is_broken(one.errors):  # released, it would be in quarantine again at once
        command = f"clawbus session show {quoted(one)}"
        back = f"Once its files are back in place, `clawbus session release {quoted(one)}` ends it."
        return finding(one, "QUARANTINED", summary, (evidence[0], back, *one.errors), command, choices=_ways_out(one))
    if "limits.max_home_folder" in reason:  # released, it would be in quarantine again at the next sweep
        back = f"Delete what is not needed in its home/, then `clawbus session release {quoted(one)}` ends it."
        return finding(one, "QUARANTINED", summary, (evidence[0], back), _what_fills(one, "home"))
    command = _reset_discarding(one) if _is_hostile(one.errors) else f"clawbus session release {quoted(one)}"
    return finding(one, "QUARANTINED", summary, evidence, command)


def files_unreadable(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report files of the session that cannot be read."""
    # A journal explains why outbound.db cannot be read now; another rule reports it.
    errors = [text for text in one.errors if not (one.journal and text.startswith("READ_RACE"))]
    if not errors:
        return None
    held = unlocking(one.lock_holders)
    if held is not None and all(text.startswith(FileBusyError.code) for text in errors):
        summary = "The session's files cannot be read: another process locks them."
        return finding(one, "FILES_UNREADABLE", summary, (*errors, *held.evidence), held.command)
    cause = host_cause(host, {text.partition(":")[0] for text in errors})
    if cause is not None:
        return finding(one, "FILES_UNREADABLE", "The session's files cannot be read.", errors, cause.command,
                   cause=cause.code, choices=cause.choices)  # fmt: skip
    # The container's side can be reset; only a backup brings back the host's own file.
    slow = any(text.startswith("READ_DEADLINE") for text in errors)
    command = (
        _reset_discarding(one)
        if _is_hostile(errors)
        else f"clawbus session {'reset' if slow else 'show'} {quoted(one)}"
    )
    choices = _ways_out(one) if " show " in command and _is_broken(errors) else ()
    return finding(one, "FILES_UNREADABLE", "The session's files cannot be read.", errors, command, choices=choices)


def too_new(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a file that a newer clawbus wrote: this one must not touch it."""
    errors = [text for text in one.errors if text.startswith(TOO_NEW)]
    errors += [seen.sentence for seen in one.failing if seen.code == TOO_NEW]
    if not errors:
        return None
    if all(OUTBOUND_DB in text for text in errors):
        # The host wrote its own file, and is not newer. So the container did it: its agent, or another image's runner.
        return finding(
            one, TOO_NEW, "Its container's file says that a newer clawbus wrote it.", errors,
            f"clawbus session reset {quoted(one)}",
            choices=(Choice("if a newer runner did write it", UPGRADE),),
        )  # fmt: skip
    return finding(
        one, TOO_NEW, "A file of the session was written by a newer clawbus.", errors, UPGRADE, choices=(BACKUPS,)
    )


def failing(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Name work on the session that fails, by the daemon's report, and has not succeeded since."""
    lasting = [seen for seen in one.failing if host.now - seen.since >= GRACE_MS or seen.times >= _FAILURES]
    if not lasting or one.quarantined_at is not None:
        return None
    evidence = [seen.sentence for seen in lasting]
    summary = "The daemon's work on the session fails."
    shortage = next((seen for seen in lasting if seen.code == HostTroubleError.code), None)
    cause = host_cause(host, {seen.code for seen in lasting})
    if cause is not None:
        return finding(
            one, "SESSION_FAILING", summary, evidence, cause.command, cause=cause.code, choices=cause.choices
        )
    held = unlocking(one.lock_holders)
    repair = exhausted_repair(host, shortage.resource) if shortage is not None else held
    if repair is not None:
        evidence += repair.evidence
        return finding(one, "SESSION_FAILING", summary, evidence, repair.command, choices=repair.choices)
    return _failing_by_its_own(one, evidence, {seen.code for seen in lasting})


def host_cause(host: HostFacts, codes: AbstractSet[str]) -> Diagnosis | None:
    """Return the host's own finding that explains errors of these codes: no repair of a session ends them."""
    if HostTroubleError.code in codes and (trouble := host_trouble(host)) is not None:
        return trouble
    return disk_full(host) if codes & {StorageError.code, HostTroubleError.code} else None


def _failing_by_its_own(one: SessionFacts, evidence: list[str], codes: AbstractSet[str]) -> Diagnosis:
    if "FILE_BUSY" in codes and one.live is not None:
        command = f"clawbus session kill {quoted(one)}"  # its exit frees every lock of its container's
    elif "READ_DEADLINE" in codes:
        command = f"clawbus session reset {quoted(one)}"
    else:
        command = "clawbus logs -n 50 --level warning"
    choices = () if " logs " not in command else (
        Choice("when its container does it", f"clawbus session kill {quoted(one)}"),
        Choice("when what it wrote does it", f"clawbus session reset {quoted(one)}"),
    )  # fmt: skip
    return finding(
        one, "SESSION_FAILING", "The daemon's work on the session fails.", evidence, command, choices=choices
    )


def _is_hostile(errors: Iterable[str]) -> bool:
    return any(text.startswith("HOSTILE_FILE") for text in errors)


def _is_broken(errors: Iterable[str]) -> bool:
    """Return whether the file is broken for good, not only unreadable now."""
    return any(text.startswith(UnusableFileError.code) for text in errors)


def _ways_out(one: SessionFacts) -> tuple[Choice, ...]:
    """Return what ends a session whose own files are gone or corrupt: no wait and no release does."""
    return (
        Choice(
            "when the session may go", f"clawbus session delete {quoted(one)} --force --reason 'its files are broken'"
        ),
        BACKUPS,
    )


def _reset_discarding(one: SessionFacts) -> str:
    """Return the reset of an out/ that cannot be read: without --discard it is refused, and a release does not last."""
    return f"clawbus session reset {quoted(one)} --discard"


def unregistered(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a session folder that central.db does not know."""
    if one.registered or host.registry_missing or host.registry_error is not None:
        return None
    evidence = ("Its folder exists, but central.db has no row for it.",)
    summary = "central.db does not know the session; the daemon adds it at its start and in every full pass."
    command = host.start if host.daemon is DaemonState.DOWN else f"clawbus session release {quoted(one)}"
    return finding(one, "UNREGISTERED", summary, evidence, command)


def nearly_full(host: HostFacts, one: SessionFacts) -> Diagnosis | None:
    """Report a session near its size limit. Its container can still free space; over the limit, it is quarantined."""
    if one.near_limit is None or one.quarantined_at is not None:
        return None
    evidence = (one.near_limit, "Over the limit, the daemon ends its container and quarantines the session.")
    if one.near_limit.startswith("home/"):
        return finding(
            one, "HOME_NEARLY_FULL", "Its home/ folder is near its limit.", evidence, _what_fills(one, "home")
        )
    choices = (
        Choice("when nothing in out/ is needed any more", f"clawbus session reset {quoted(one)}"),
        Choice("to see what fills it", _what_fills(one, "out")),
    )
    return finding(
        one, "OUT_NEARLY_FULL", "Its out/ folder is near its limit.", evidence, choices[1].command, choices=choices[:1]
    )


def _what_fills(one: SessionFacts, name: str) -> str:
    path = f"{one.folder or ''}/{name}"
    return f"du -ah --max-depth=3 {shlex.quote(path)}"
