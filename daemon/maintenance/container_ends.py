"""Ends containers while no daemon runs. Reports an exit only when the runtime has confirmed it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import anyio

from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError
from daemon.core.facts import Container
from daemon.runtimes.protocol import ContainerRuntime
from schema.errors import ClawbusError
from schema.frozen import frozen


@frozen
class KilledAgent:
    """The result of killing one container. `error` says why its exit is not confirmed; None if it is."""

    agent: str
    session: str
    incarnation: str | None
    exit_code: int | None = None
    error: ClawbusError | None = None


def containers_unknown(question: str, error: str | None, repair: str | None) -> RuntimeUnavailableError:
    """Return the error to raise while nobody can say which containers run.

    `question` begins with "whether"; `error` is the runtime's, `repair` a command that may help.
    """
    why = (error or "the runtime does not answer").rstrip(".")
    do = f"`{repair}`" if repair else "`clawbus doctor` says what to do about the runtime"
    return RuntimeUnavailableError(f"{question} cannot be determined: {why}.", hint=f"{do}; then repeat the command.")


async def stop(runtime: ContainerRuntime, container: Container) -> None:
    """Ask the container to end (SIGTERM) and return without waiting."""
    await runtime.forbid_restart(container.container_id)
    await runtime.stop(container.container_id)


async def kill(runtime: ContainerRuntime, container: Container, confirm_s: float) -> int | None:
    """Kill the container and wait until the runtime confirms its exit. Return the exit code; None if the runtime lost it.

    Raise NotConfirmedError after `confirm_s` seconds.
    """
    await runtime.forbid_restart(container.container_id)
    await runtime.kill(container.container_id)
    try:
        with anyio.fail_after(confirm_s):
            return (await runtime.wait(container.container_id, container.started_at)).code
    except TimeoutError as error:
        raise NotConfirmedError(
            f"the exit of container {container.container_id} was not confirmed within {confirm_s:g} s.",
            hint="Repeat the command; `clawbus doctor` says whether the runtime answers.",
        ) from error


async def end(runtime: ContainerRuntime, container: Container, confirm_s: float, *, graceful: bool) -> int | None:
    """`stop` the container if graceful, and return None; otherwise `kill` it, and return what that returns."""
    return await (stop(runtime, container) if graceful else kill(runtime, container, confirm_s))


async def withdraw_starts(runtime: ContainerRuntime, incarnations: Sequence[str]) -> bool:
    """Withdraw the starts that a dead daemon asked the runtime for. Return whether any container had already started."""
    found = [await runtime.find_or_cancel_spawn(incarnation) for incarnation in incarnations]
    return any(one is not None for one in found)


async def kill_each(
    runtime: ContainerRuntime, containers: Sequence[Container], confirm_s: float
) -> list[int | ClawbusError | None]:
    """Kill all containers at once. Return for each, in the same order, what `kill` returns or the error that it raised."""
    ends: list[int | ClawbusError | None] = [None] * len(containers)

    async def one(index: int) -> None:
        try:
            ends[index] = await kill(runtime, containers[index], confirm_s)
        except ClawbusError as error:  # the other containers must end all the same
            ends[index] = error

    async with anyio.create_task_group() as tasks:
        for index in range(len(containers)):
            tasks.start_soon(one, index)
    return ends


def killed_agents(
    containers: Sequence[Container], ends: Sequence[int | ClawbusError | None], alive: Collection[str]
) -> list[KilledAgent]:
    """Return the result for each container. `alive`: incarnations that the runtime still lists after the kills."""
    killed: list[KilledAgent] = []
    for one, end in zip(containers, ends, strict=True):
        error, code = (end, None) if isinstance(end, ClawbusError) else (None, end)
        if error is None and one.incarnation in alive:
            error = NotConfirmedError(f"container {one.container_id} runs again: something has restarted it.")
        killed.append(KilledAgent(one.agent, one.session, one.incarnation, code, error))
    return killed
