"""Ends containers through their runtime while no daemon runs. Reports only exits that the runtime has confirmed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import anyio

from daemon.core.errors import NotConfirmedError, RuntimeUnavailableError
from daemon.core.facts import Container
from daemon.runtimes.protocol import ContainerRuntime
from schema.errors import ClawbusError


@dataclass(frozen=True, slots=True)
class KilledAgent:
    """The result of killing one agent. `error`: why its exit is not confirmed."""

    agent: str
    session: str
    incarnation: str | None
    exit_code: int | None = None
    error: ClawbusError | None = None


def unknown(question: str, error: str | None, repair: str | None) -> RuntimeUnavailableError:
    """Return what to raise while it is unknown which containers run. `repair`: a command."""
    why = (error or "the runtime does not answer").rstrip(".")
    do = f"`{repair}`" if repair else "`clawbus doctor` says what to do about the runtime"
    return RuntimeUnavailableError(f"{question} cannot be determined: {why}.", hint=f"{do}; then repeat the command.")


async def stop(runtime: ContainerRuntime, container: Container) -> None:
    """Ask for a graceful end and return without waiting."""
    await runtime.forbid_restart(container.container_id)
    await runtime.stop(container.container_id)


async def kill(runtime: ContainerRuntime, container: Container, confirm_s: float) -> int | None:
    """Kill the container, wait for the confirmed exit and return its code. Raise NotConfirmedError."""
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
    """End the container: `stop` it if graceful, else `kill` it. Return the exit code of a kill."""
    return await (stop(runtime, container) if graceful else kill(runtime, container, confirm_s))


async def withdraw_starts(runtime: ContainerRuntime, incarnations: Sequence[str]) -> bool:
    """Withdraw what a dead daemon asked the runtime to start. Return whether any of it had started already."""
    found = [await runtime.find_or_cancel_spawn(incarnation) for incarnation in incarnations]
    return any(one is not None for one in found)


async def kill_each(
    runtime: ContainerRuntime, containers: Sequence[Container], confirm_s: float
) -> list[int | ClawbusError | None]:
    """Kill all of them at once, and return each one's exit code or why it is not confirmed, in their order."""
    ends: list[int | ClawbusError | None] = [None] * len(containers)

    async def one(index: int) -> None:
        try:
            ends[index] = await kill(runtime, containers[index], confirm_s)
        except ClawbusError as error:  # a container that does not end must not keep the others alive
            ends[index] = error

    async with anyio.create_task_group() as tasks:
        for index in range(len(containers)):
            tasks.start_soon(one, index)
    return ends


def killed_agents(
    containers: Sequence[Container], ends: Sequence[int | ClawbusError | None], alive: Collection[str]
) -> list[KilledAgent]:
    """Combine the result for each container with the incarnations that the runtime still lists afterwards."""
    killed: list[KilledAgent] = []
    for one, end in zip(containers, ends, strict=True):
        error, code = (end, None) if isinstance(end, ClawbusError) else (None, end)
        if error is None and one.incarnation in alive:
            error = NotConfirmedError(f"container {one.container_id} runs again: something has restarted it.")
        killed.append(KilledAgent(one.agent, one.session, one.incarnation, code, error))
    return killed
