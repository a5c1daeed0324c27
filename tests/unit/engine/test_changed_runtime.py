"""A daemon is refused while containers live, or may live, under another runtime than the configured one."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.core.errors import EngineChangedError, RuntimeChangedError
from daemon.core.session_key import SessionKey
from daemon.engine.supervisor.changed_runtime import _alive, refuse_changed_runtime
from daemon.runtimes.protocol import ContainerRuntime, Running
from daemon.store.incarnations import IncarnationRow
from daemon.store.install import Engine
from tests.support.fake_runtime import FakeRuntime
from tests.support.runtime_harness import FakeHarness

pytestmark = [pytest.mark.anyio]


class Other:
    """The runtime of the other kind, with one container in it, and its record."""

    def __init__(self, root: Path) -> None:
        self.harness = FakeHarness(root)
        self.asked: list[str] = []
        self.row = IncarnationRow("01OTHER", SessionKey("helper", "main"), "docker", "f", "c1", 1)

    def build(self, kind: str) -> ContainerRuntime:
        self.asked.append(kind)
        return self.harness.runtime()

    async def start(self) -> None:
        await self.harness.runtime().spawn(self.harness.spec(incarnation=self.row.id))


@pytest.fixture
def other(tmp_path: Path) -> Other:
    return Other(tmp_path)


async def test_living_containers_of_another_runtime_refuse_the_start(other: Other) -> None:
    await other.start()
    with pytest.raises(RuntimeChangedError, match="helper/main; they still run") as refused:
        await refuse_changed_runtime("process", [other.row], other.build)
    assert all(f'"{kind}"' in str(refused.value) for kind in ("process", "docker"))
    assert refused.value.hint is not None
    assert 'kind = "docker"' in refused.value.hint
    assert "`clawbus session kill --all`" in refused.value.hint


async def test_a_runtime_that_does_not_answer_is_no_word_that_they_are_gone(other: Other) -> None:
    other.harness.take_away()
    with pytest.raises(RuntimeChangedError, match="is unknown whether"):
        await refuse_changed_runtime("process", [other.row], other.build)


async def test_containers_that_are_gone_there_refuse_nothing(other: Other) -> None:
    await refuse_changed_runtime("process", [other.row], other.build)
    assert other.asked == ["docker"]


async def test_what_was_only_asked_for_is_withdrawn_before_the_listing_counts(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon died in the spawn, so the record has no container: it may begin until the runtime has settled it."""
    asked = IncarnationRow(other.row.id, other.row.key, "docker", "f", None, 1)
    real = FakeRuntime.find_or_cancel_spawn

    async def begins_meanwhile(runtime: FakeRuntime, incarnation: str) -> Running | None:
        await other.start()
        return await real(runtime, incarnation)

    monkeypatch.setattr(FakeRuntime, "find_or_cancel_spawn", begins_meanwhile)
    with pytest.raises(RuntimeChangedError, match="helper/main; they still run"):
        await refuse_changed_runtime("process", [asked], other.build)


async def test_what_began_without_a_record_and_has_ended_refuses_nothing(other: Other) -> None:
    await other.start()
    host = other.harness.host
    host.exit_now(next(iter(host.containers)), 0)
    asked = IncarnationRow(other.row.id, other.row.key, "docker", "f", None, 1)
    await refuse_changed_runtime("process", [asked], other.build)


async def test_a_runtime_that_nobody_knows_cannot_be_asked(other: Other) -> None:
    row = IncarnationRow("01OTHER", SessionKey("helper", "main"), "lxc", "f", "c1", 1)
    with pytest.raises(RuntimeChangedError, match="lxc"):
        await refuse_changed_runtime("process", [row], other.build)
    assert other.asked == []


async def test_plain_processes_are_found_without_a_record_too(other: Other) -> None:
    """central.db was lost and rebuilt."""
    await other.start()
    with pytest.raises(RuntimeChangedError, match='"process"'):
        await refuse_changed_runtime("docker", [], other.build)


async def test_the_same_runtime_is_not_asked(other: Other) -> None:
    await refuse_changed_runtime("process", [IncarnationRow("1", other.row.key, "process", "f", "c", 1)], other.build)
    assert other.asked == []


async def test_another_engine_of_the_other_kind_cannot_say_that_they_are_gone(other: Other) -> None:
    row = IncarnationRow(other.row.id, other.row.key, "fake", "f", "c1", 1)
    known = Engine("fake", "engine-of-the-containers")
    with pytest.raises(EngineChangedError, match="engine-of-the-containers"):
        await _alive(other.build("fake"), [row], known)
    other.harness.host.identity = known.id
    assert await _alive(other.build("fake"), [row], known) == set()
