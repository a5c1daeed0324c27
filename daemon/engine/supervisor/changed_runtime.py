"""Refuses a start while containers of the data folder live under another runtime than the configured one.

This runtime's listing says nothing about them: taking them for gone would start a second container beside each. Ends and
records nothing, and withdraws what was asked for and has not begun; incarnations that are truly gone are settled by the
adoption that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from typing import Final

from daemon.core.errors import EngineChangedError, RuntimeChangedError, RuntimeUnavailableError
from daemon.runtimes.engine_identity import EngineGuard, another_engine, is_witness
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.incarnations import IncarnationRow
from daemon.store.install import Engine
from schema.errors import ClawbusError

_KINDS: Final = ("docker", "podman", "process")
_NAMED: Final = 20


async def refuse_changed_runtime(
    name: str,
    live: Sequence[IncarnationRow],
    build: Callable[[str], ContainerRuntime],
    known: Engine | None = None,
) -> None:
    """Raise RuntimeChangedError when an incarnation of another runtime than `name` lives, or that is unknown.

    `live` are the incarnations without a confirmed exit; `build` makes a runtime of another kind, to be asked only; `known`
    is the engine on record: another one of its kind cannot say.
    """
    # Search for plain processes without a record too: that costs nothing, and a rebuilt registry has no records.
    by_kind: dict[str, list[IncarnationRow]] = {"process": []} if name != "process" else {}
    for row in live:
        if row.runtime != name:
            by_kind.setdefault(row.runtime, []).append(row)
    for kind, rows in sorted(by_kind.items()):
        if kind not in _KINDS:
            raise _refusal(name, kind, {str(row.key) for row in rows}, f"this clawbus knows no runtime {kind}")
        try:
            alive = await _alive(build(kind), rows, known)
        except ClawbusError as error:
            if not rows:
                continue
            why = f"it is unknown whether they still run: {error}"
            raise _refusal(name, kind, {str(row.key) for row in rows}, why) from error
        if alive:
            raise _refusal(name, kind, alive, "they still run")


async def refuse_changed_engine(live: Sequence[IncarnationRow], guard: EngineGuard) -> None:
    """Raise RuntimeChangedError when another engine of the configured kind answers while incarnations live on record.

    One that does not answer does not prevent the start: adoption asks it again.
    """
    try:
        await guard.check(live)
    except EngineChangedError as error:
        named = ", ".join(sorted({str(row.key) for row in live})[:_NAMED])
        raise RuntimeChangedError(f"{str(error).rstrip('.')} (sessions: {named}).", hint=error.hint) from error
    except RuntimeUnavailableError:
        return


async def _alive(runtime: ContainerRuntime, rows: Sequence[IncarnationRow], known: Engine | None) -> set[str]:
    """Return the sessions whose containers live there, recorded or not. Raise EngineChangedError of another engine."""
    async with aclosing(runtime):
        if known is not None and known.kind == runtime.name and (identity := await runtime.identity()) != known.id:
            listed = [one.container_id for one in await runtime.list_running()]
            if not is_witness(known, runtime.name, identity, [row.container_id for row in rows], listed):
                raise another_engine(known, identity, runtime.address)
        for row in rows:
            if row.container_id is None:
                # Its daemon died in the spawn: what has not begun is withdrawn, what has begun is in the listing after it.
                await runtime.find_or_cancel_spawn(row.id)
        return {f"{one.agent}/{one.session}" for one in await runtime.list_running()}


def _refusal(name: str, kind: str, sessions: Collection[str], why: str) -> RuntimeChangedError:
    named = ", ".join(sorted(sessions)[:_NAMED]) + (", ..." if len(sessions) > _NAMED else "")
    return RuntimeChangedError(
        f'[runtime] kind is "{name}", and containers under "{kind}" belong to {len(sessions)} sessions: {named};'
        f" {why}.",
        hint=f'End them with `clawbus session kill --all`, then start; or set kind = "{kind}" again.',
    )
