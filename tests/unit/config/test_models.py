"""The configuration: what is wrong is named with its key and its fix, and the environment wins over the file."""

from pathlib import Path

import pytest

from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.config.sources import find_config
from daemon.core.errors import ConfigError


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CLAWBUS_CONFIG", raising=False)
    monkeypatch.delenv("CLAWBUS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "clawbus.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("data_dri = 'x'", "data_dri", "data_dir"),
        ("[runtim]\nkind = 'process'", "runtim", "runtime"),
        ("[runtime]\nmax_container = 3", "runtime.max_container", "max_containers"),
        ("[sweep]\ninterval = 3", "sweep.interval", "interval_s"),
        ("[agents.a]\nprovder = 'echo'", "agents.a.provder", "provider"),
    ],
)
def test_a_typo_is_named_and_the_right_key_suggested(tmp_path: Path, text: str, key: str, suggestion: str) -> None:
    message = refused(tmp_path, text)
    assert f"{key}: unknown key" in message
    assert f"{suggestion!r}" in message


@pytest.mark.parametrize(("name", "meant"), [("comand", "did you mean 'command'?"), ("qqq", "no provider 'qqq'")])
def test_an_unknown_provider_is_named(tmp_path: Path, name: str, meant: str) -> None:
    message = refused(tmp_path, f"[agents.a]\nprovider = '{name}'")
    assert "agents.a.provider" in message
    assert meant in message


def test_a_key_like_no_other_is_to_be_removed(tmp_path: Path) -> None:
    assert "qqq: unknown key; remove it" in refused(tmp_path, "qqq = 1")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[runtime]\nmax_containers = 'many'", "runtime.max_containers"),
        ("[runtime]\nmax_containers = 0", "runtime.max_containers"),
        ("[runtime]\nkind = 'lxc'", "runtime.kind"),
        ("[sweep]\ninterval_s = -1", "sweep.interval_s"),
        ("[docker]\nmemory_bytes = 1", "docker.memory_bytes"),
        (f"[docker]\nmemory_bytes = 1{'0' * 30}", "docker.memory_bytes"),
        ("[docker]\nnetwork = ''", "docker.network"),
        ("[docker]\nimage = 'a b'", "docker.image"),
        ("[docker]\ncpus = 1e-10", "docker.cpus"),
        ("[agents.a]\ncpus = 1e-10", "agents.a.cpus"),
        ("[agents.a]\npids = 9000000000", "agents.a.pids"),
        ('[agents.a]\nnetwork = "a\\nb"', "agents.a.network"),
        ("[agents.a]\nprovider = 'command'\ncommand = 'a string'", "agents.a.command"),
        ('[agents.a]\nprovider = "command"\ncommand = ["a\\u0000b"]', "agents.a.command"),
        ("[logs]\nlevel = 'loud'", "logs.level"),
        ("runtime = 3", "runtime"),
        ("[agents.a.destinations.b]\nagent = 'b'", "agents.a.destinations.b.agent"),
        ("[agents.a.destinations.b]\nagent = 'a'\nchannel = 'local'\nplace = 'x'", "agents.a.destinations.b"),
        ("[agents.a.destinations.b]\nchannel = 'local'", "agents.a.destinations.b"),
        ("[agents.a.destinations.b]\nchannel = 'local'\nplace = \"x\\ny\"", "agents.a.destinations.b.place"),
        ("[agents.a.destinations.here]\nchannel = 'local'\nplace = 'x'", "agents.a.destinations.here"),
        ('[agents.a.destinations."x\\ny"]\nchannel = "local"\nplace = "x"', r"agents.a.destinations.x\ny"),
        (
            '[agents.a.destinations.b]\nchannel = "local"\nplace = "x"\ndisplay_name = "x\\u202ey"',
            "agents.a.destinations.b.display_name",
        ),
        (
            "[agents.a]\n[schedules.s]\nagent = 'a'\ntext = 'x'\nevery_s = 9\ncheck = \"a\\u0000b\"",
            "schedules.s.check",
        ),
        ("[agent_messages]\nmax_hops = 0", "agent_messages.max_hops"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, key: str) -> None:
    assert f"{key}" in refused(tmp_path, text)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "[sweep]\ninterval_s = 0\nmax_tries = 0\n[logs]\nlevel = 1")
    assert all(key in message for key in ("sweep.interval_s", "sweep.max_tries", "logs.level"))


def test_an_agent_s_name_may_not_be_a_path(tmp_path: Path) -> None:
    assert "../x" in refused(tmp_path, '[agents."../x"]')


def test_the_provider_command_needs_a_program(tmp_path: Path) -> None:
    assert "agents.a.command" in refused(tmp_path, "[agents.a]\nprovider = 'command'")


@pytest.mark.parametrize("text", ["[runtime", "a = ", "a = 1\na = 2"])
def test_broken_toml_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    message = refused(tmp_path, text)
    assert "is not TOML" in message
    assert "line" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\n[runtime", 2),
        ("a = 1\n\n# what follows\nb = 'x\nc = 2\n", 4),
        ('a = 1\nb = """x\ny\nz\n', 2),
        ("a = 1\nb = [\n  1,\n  2\n", 2),
        ("a = ", 1),
    ],
)
def test_what_is_not_closed_is_told_with_the_line_where_it_begins(tmp_path: Path, text: str, line: int) -> None:
    message = refused(tmp_path, text)
    assert "clawbus.toml is not TOML" in message
    assert f"(at line {line}" in message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is UTF-16 text, not UTF-8"):
        load_config(path)


def test_a_missing_file_leads_to_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_config(tmp_path / "none.toml")
    assert "clawbus init" in caught.value.hint


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_RUNTIME__MAX_CONTAINERS", "3")
    config = load(tmp_path, "[runtime]\nmax_containers = 5\nidle_stop_s = 7.0")
    assert (config.runtime.max_containers, config.runtime.idle_stop_s) == (3, 7.0)


def test_a_wrong_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_RUNTIME__MAX_CONTAINERS", "lots")
    assert "runtime.max_containers" in refused(tmp_path, "")


def test_an_environment_variable_that_is_no_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAWBUS_AGENTS", "{")
    assert "agents" in refused(tmp_path, "")


def test_the_command_line_s_folder_wins_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text("data_dir = 'file'")
    assert load_config(path).data_dir == tmp_path / "file"
    monkeypatch.setenv("CLAWBUS_DATA_DIR", "/environment")
    assert load_config(path).data_dir == Path("/environment")
    assert load_config(path, data_dir=Path("here")).data_dir == tmp_path / "here"


def test_a_relative_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    assert load(below, "data_dir = '../data'").data_dir == tmp_path / "data"


def test_the_socket_lies_in_the_data_folder_unless_named(tmp_path: Path) -> None:
    assert load(tmp_path, "data_dir = '/d'").control_socket == Path("/d/control.sock")
    assert load(tmp_path, "[control]\nsocket = '/run/c.sock'").control_socket == Path("/run/c.sock")


class TestFinding:
    def test_what_is_named_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLAWBUS_CONFIG", "/environment.toml")
        assert find_config(Path("/named.toml")) == Path("/named.toml")
        assert find_config(None) == Path("/environment.toml")

    def test_then_the_folder_s_own(self, tmp_path: Path) -> None:
        assert find_config(None) != tmp_path / "clawbus.toml"
        (tmp_path / "clawbus.toml").write_text("")
        assert find_config(None) == tmp_path / "clawbus.toml"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("timezone = 'Europe/Atlantis'", "timezone"),
        ("timezone = ''", "timezone"),
        ("data_dir = ''", "data_dir"),
        ("data_dir = '/'", "data_dir"),
        ("[agents.a]\nprovider = 'command'\ncommand = ['', 'x']", "agents.a.command"),
        ("[agents.a]\nprovider = 'command'\ncommand = ['x']\nclaim_max_s = 600", "agents.a.claim_max_s"),
        ("[sweep]\nclaim_max_s = 60\n[agents.a]\nprovider = 'command'\ncommand = ['x']", "sweep.claim_max_s"),
    ],
)
def test_what_would_only_show_later_is_refused_at_once(tmp_path: Path, text: str, key: str) -> None:
    assert f"{key}: " in refused(tmp_path, text)


def test_what_the_types_cannot_see_is_told_at_once_too(tmp_path: Path) -> None:
    message = refused(tmp_path, "data_dir = '/'\n[agents.'../x']\n[agents.b]\nprovider = 'command'")
    assert all(key in message for key in ("data_dir", "../x", "agents.b.command"))


class TestVariables:
    @pytest.mark.parametrize("name", ["CLAWBUS_BOGUS", "CLAWBUS_RUNTME__KIND", "CLAWBUS_DATADIR"])
    def test_one_that_looks_like_ours_and_is_no_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name, "1")
        assert name in refused(tmp_path, "")

    @pytest.mark.parametrize("name", ["CLAWBUS_TEST_X", "CLAWBUS_REQUIRE_DOCKER", "CLAWBUS_INCARNATION", "CLAWBUSY"])
    def test_one_that_is_something_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "1")
        load(tmp_path, "")

    def test_one_that_a_channel_takes_its_secret_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLAWBUS_HOOK", "1" * 20)
        load(tmp_path, "[channels.webhook.hooks.h]\nsecret_env = 'CLAWBUS_HOOK'")
