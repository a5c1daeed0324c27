"""Where a repair depends on the configuration or the machine: images by the keys that name them, a daemon of systemd's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.config.loading import load_config
from daemon.core.diagnoses import diagnose_host
from daemon.core.facts import DaemonState, HostFacts
from daemon.inspect.session_report import session_report
from daemon.runtimes.agent_images import agent_images
from daemon.systemd.service import unit_of
from tests.support.forensic_world import AGENT, ForensicWorld
from tests.support.session_world import NOW, SessionWorld

HOST = HostFacts(now=NOW, data_dir="/data")


def test_a_small_disk_is_told_with_numbers_that_are_not_zero() -> None:
    (found,) = diagnose_host(replace(HOST, daemon=DaemonState.UP, free_bytes=300 * 1024, low_bytes=614 * 1024))
    assert "300 KiB are free; below 614 KiB writing soon fails." in found.evidence
    (found,) = diagnose_host(replace(HOST, daemon=DaemonState.UP, free_bytes=9 * 1024**2, low_bytes=64 * 1024**2))
    assert "9 MiB are free; below 64 MiB writing soon fails." in found.evidence


def test_an_image_is_told_with_the_keys_that_name_it_and_the_agents_that_use_it(tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(
        f'''data_dir = "{tmp_path}"
[docker]
image = "ours:1"
[agents.badimg]
image = "my-agents:v7"
[agents.plain]
[agents.foreign]
image = "theirs:2"
runner = ["/bin/run"]
''',
        encoding="utf-8",
    )
    own, default = agent_images(load_config(path))
    assert own.where == 'agents.badimg.image = "my-agents:v7" (used by agent badimg)'
    assert own.build == "clawbus image build --tag my-agents:v7"
    assert default.where == 'docker.image = "ours:1" (used by agent plain)'


def test_the_default_image_does_not_matter_when_no_agent_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(f'data_dir = "{tmp_path}"\n[agents.a]\nimage = "mine:1"\n', encoding="utf-8")
    assert [one.image for one in agent_images(load_config(path))] == ["mine:1"]


def test_a_daemon_of_systemd_is_started_by_systemd(tmp_path: Path) -> None:
    own, service = tmp_path / "own", Path("/var/lib/clawbus")
    assert unit_of(service, root=tmp_path) is None, "systemd does not run here"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert unit_of(service, root=tmp_path) is None, "there is no unit"
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    starts = "[Service]\nExecStart=/opt/clawbus/bin/clawbus serve --config /etc/clawbus/clawbus.toml\n"
    (units / "clawbus.service").write_text(starts)
    assert unit_of(service, root=tmp_path) == "clawbus"
    assert unit_of(own, root=tmp_path) is None, "another folder on the same machine"
    config = tmp_path / "etc/clawbus/clawbus.toml"
    config.parent.mkdir()
    config.write_text(f'data_dir = "{own}"\n')
    assert unit_of(own, root=tmp_path) == "clawbus", "the unit's configuration names it"


@pytest.mark.parametrize("plain", [False, True], ids=["", "clawbus.service is installed too"])
def test_where_slots_are_used_the_one_that_serves_is_started(tmp_path: Path, plain: bool) -> None:
    """A start of clawbus.service would end both slots, and its daemon is refused beside them."""
    service = Path("/var/lib/clawbus")
    units = tmp_path / "etc/systemd/system"
    for folder in (tmp_path / "run/systemd/system", units, tmp_path / "var/lib/clawbus/deploy"):
        folder.mkdir(parents=True)
    repository = Path(__file__).parents[3] / "systemd"
    for name in ("clawbus@.service", *(("clawbus.service",) if plain else ())):
        (units / name).write_text((repository / name).read_text())
    state = tmp_path / "var/lib/clawbus/deploy/state.json"
    assert unit_of(service, root=tmp_path) == ("clawbus" if plain else None), "no slot has ever served"
    for serving, unit in (("green", "clawbus@green"), ("blue", "clawbus@blue"), ("red", "clawbus" if plain else None)):
        state.write_text(f'{{"epoch": 1, "serving": "{serving}"}}')
        assert unit_of(service, root=tmp_path) == unit
    other = tmp_path / "srv/bus/deploy"
    other.mkdir(parents=True)
    (other / "state.json").write_text('{"epoch": 1, "serving": "blue"}')
    assert unit_of(Path("/srv/bus"), root=tmp_path) is None, "another folder, whose slots are started otherwise"


@pytest.mark.parametrize(
    "lines",
    [
        "ExecStart=/opt/clawbus/bin/clawbus serve --data /srv/bus",
        "ExecStart=/opt/clawbus/bin/clawbus serve\nEnvironment=CLAWBUS_DATA_DIR=/srv/bus",
    ],
)
def test_a_unit_of_another_name_is_found_by_its_folder(tmp_path: Path, lines: str) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "another.service").write_text("[Service]\nExecStart=/bin/other --data /srv/bus\n")
    assert unit_of(Path("/srv/bus"), root=tmp_path) is None, "not a daemon of clawbus"
    (units / "second-bus.service").write_text(f"[Service]\n{lines}\n")
    assert unit_of(Path("/srv/bus"), root=tmp_path) == "second-bus"


def test_the_daemon_s_repairs_fit_the_machine() -> None:
    down, silent = replace(HOST, daemon=DaemonState.DOWN), replace(HOST, daemon=DaemonState.SILENT, holder_pid=4711)
    assert [one.command for one in diagnose_host(down)] == ["clawbus serve"]
    assert [one.command for one in diagnose_host(replace(down, unit="second-bus"))] == ["systemctl start second-bus"]
    assert [one.command for one in diagnose_host(silent)] == ["kill -KILL 4711"]
    answers = replace(silent, daemon=DaemonState.UP, budgets_used_up=(("a", "3 of 3 requests"),))
    [budget] = diagnose_host(answers)
    [choice] = budget.choices
    assert choice.command == "kill -TERM 4711", "a daemon that answers stops in order"
    assert choice.when.endswith("(and start it again)"), "nothing else does"
    [budget] = diagnose_host(replace(answers, unit="second-bus"))
    assert not budget.choices[0].when.endswith(")"), "systemd starts it"
    assert [one.command for one in diagnose_host(replace(silent, unit="second-bus"))] == [
        "systemctl restart second-bus"
    ]


def test_an_agent_is_gone_only_by_a_configuration_that_is_this_folder_s() -> None:
    known = replace(HOST, agents=frozenset({"other"}))
    assert known.lost("a")
    assert not known.lost("other")
    for host in (HOST, replace(known, agents=frozenset()), replace(known, config_faults=("x",))):
        assert not host.lost("a")
    assert not replace(known, other_runtime="docker").lost("a")


def test_a_folder_that_the_registry_does_not_know_is_shown_while_the_daemon_is_down(tmp_path: Path) -> None:
    world = ForensicWorld(tmp_path / "d")
    SessionWorld(world.root / "sessions" / AGENT / "stranger").accept("m1")
    report = session_report(world.root, AGENT, "stranger", world.clock)
    assert (report["pending"], [one["id"] for one in report["messages"]]) == (1, ["m1"])


def test_a_folder_restored_over_itself_is_not_said_to_belong_to_its_own_path() -> None:
    for path, expected in ((HOST.data_dir, "at this path before"), ("/other", "another folder: /other")):
        (copied,) = [one for one in diagnose_host(replace(HOST, copied_from=path)) if one.code == "COPIED_FOLDER"]
        assert expected in copied.evidence[0]
        assert HOST.data_dir not in copied.evidence[0]
