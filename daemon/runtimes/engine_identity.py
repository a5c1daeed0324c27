"""Is the engine that answers the one that our containers run on? The record of it is in `install.json`.

An engine of the same kind that is another one (a second dockerd, a context, a tunnel, a machine) lists none of our containers,
and that is not "gone". While incarnations live on record it is refused; with none it becomes the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from anyio import to_thread

from daemon.core.errors import EngineChangedError
from daemon.runtimes.protocol import ContainerRuntime
from daemon.store.incarnations import IncarnationRow
from daemon.store.install import Engine, InstallFile
from schema.os_faults import typed_host_errors


def is_witness(
    known: Engine | None, kind: str, identity: str, recorded: Collection[str | None], listed: Iterable[str]
) -> bool:
    """Return whether an engine's answers are evidence of which containers live.

    `recorded` are the container ids of living incarnations of this kind, `listed` those that the engine has. One that
    has a recorded container is the one, whatever its id has become.
    """
    if known is None or not identity or known.kind != kind or known.id == identity:
        return True
    return not recorded or any(one in recorded for one in listed)


def another_engine(known: Engine, identity: str, address: str) -> EngineChangedError:
    """Return the error that says that another engine answers."""
    was = f" at {known.host}" if known.host else ""
    return EngineChangedError(
        f"the engine at {address} is {identity}, and this installation's containers run on {known.id}{was}: what it does"
        " not list may live there."
    )


class EngineGuard:
    """Compares the engine with the record, and pins the runtime to it."""

    def __init__(self, file: InstallFile, install_id: str, runtime: ContainerRuntime) -> None:
        self._file = file
        self._install_id = install_id
        self.runtime = runtime

    async def check(self, live: Sequence[IncarnationRow]) -> None:
        """Raise EngineChangedError when another engine answers while `live` incarnations are on record.

        Else this engine is recorded and pinned. Raise RuntimeUnavailableError, StorageError.
        """
        runtime = self.runtime
        identity = await runtime.identity()
        with typed_host_errors("install.json cannot be read"):
            known = await to_thread.run_sync(self._file.engine)
        recorded = [row.container_id for row in live if row.runtime == runtime.name]
        if not is_witness(known, runtime.name, identity, recorded, ()):
            assert known is not None
            runtime.pin(None)
            found = [await runtime.find_or_cancel_spawn(row.id) for row in live if row.runtime == runtime.name]
            listed = [one.container_id for one in found if one is not None]
            if not is_witness(known, runtime.name, identity, recorded, listed):
                runtime.pin(known.id)
                raise another_engine(known, identity, runtime.address)
        if identity:
            engine = Engine(runtime.name, identity, runtime.address)
            with typed_host_errors("install.json cannot be written"):
                await to_thread.run_sync(self._file.set_engine, engine, self._install_id)
        runtime.pin(identity or None)
