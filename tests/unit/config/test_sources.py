"""Where the configuration comes from: other people's files and variables, encodings, and a machine without time zones."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import container_runner.providers
from container_runner.providers.acp import permissions
from daemon.config import agents as config
from daemon.config.loading import load_config
from daemon.config.sources import find_config, service_links
from daemon.core.errors import ConfigError
from daemon.core.schedules import next_cron
from tests.support.command_line import CommandLine

LINKS = {
    "CLAWBUS_PORT": "tcp://10.96.0.7:9464",
    "CLAWBUS_SERVICE_HOST": "10.96.0.7",
    "CLAWBUS_SERVICE_PORT": "9464",
    "CLAWBUS_SERVICE_PORT_METRICS": "9464",
    "CLAWBUS_PORT_9464_TCP": "tcp://10.96.0.7:9464",
    "CLAWBUS_PORT_9464_TCP_ADDR": "10.96.0.7",
    "CLAWBUS_PORT_9464_TCP_PORT": "9464",
    "CLAWBUS_PORT_9464_TCP_PROTO": "tcp",
    "CLAWBUS_PORT_53_UDP_ADDR": "10.96.0.7",
    "CLAWBUS_WEBHOOK_SERVICE_HOST": "10.96.0.8",
    "CLAWBUS_WEBHOOK_PORT": "tcp://10.96.0.8:8650",
    "CLAWBUS_WEBHOOK_PORT_8650_TCP_ADDR": "10.96.0.8",
    "CLAWBUS_NAME": "/web/clawbus",
    "CLAWBUS_ENV_PATH": "/bin",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CLAWBUS_CONFIG", "CLAWBUS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clawbus.toml").write_text('data_dir = "d"\n[runtime]\nkind = "process"\n[agents.echo]\n')
    return tmp_path


@pytest.fixture
def cli(home: Path, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capfd, home / "clawbus.toml")


def refused(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value


class TestFiles:
    @pytest.fixture
    def system(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = home / "etc"
        folder.mkdir()
        monkeypatch.setattr("daemon.config.sources.SYSTEM_FOLDER", folder)
        return folder / "clawbus.toml"

    @staticmethod
    def close(monkeypatch: pytest.MonkeyPatch, *closed: Path) -> None:
        """As for a user who may not read these files, or not enter these folders. The tests may run as root."""
        real_access, real_stat = os.access, Path.stat

        def access(path: Path, mode: int) -> bool:
            return Path(path) not in closed and real_access(path, mode)

        def stat(path: Path, **options: bool) -> os.stat_result:
            if path.parent in closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real_stat(path, **options)

        monkeypatch.setattr(os, "access", access)
        monkeypatch.setattr(Path, "stat", stat)

    def test_one_that_may_not_be_read_is_passed_over(
        self, home: Path, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        system.write_text("")
        self.close(monkeypatch, home / "clawbus.toml")
        assert find_config(None) == system

    def test_one_in_a_folder_that_may_not_be_entered_too(
        self, home: Path, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        system.write_text("")
        self.close(monkeypatch, home)
        assert find_config(None) == system
        system.unlink()
        assert find_config(None) is None

    def test_without_another_the_refusal_names_it(
        self, home: Path, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.close(monkeypatch, home / "clawbus.toml")
        with pytest.raises(ConfigError, match=r"clawbus\.toml is not readable for this user"):
            find_config(None)

    def test_the_system_s_folder_that_may_not_be_entered_is_named(
        self, home: Path, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "clawbus.toml").unlink()
        self.close(monkeypatch, system.parent)
        with pytest.raises(ConfigError, match=r"etc/clawbus\.toml is not readable"):
            find_config(None)

    def test_a_current_folder_that_is_gone(self, home: Path, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        system.write_text("")
        gone = home / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        assert find_config(None) == system

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_real_one(self, home: Path, system: Path) -> None:
        system.write_text("")
        (home / "clawbus.toml").chmod(0)
        assert find_config(None) == system

    def test_a_byte_order_mark_is_passed_over(self, home: Path) -> None:
        path = home / "bom.toml"
        path.write_bytes(b"\xef\xbb\xbf" + b'timezone = "UTC"\r\n')
        assert load_config(path).timezone == "UTC"

    @pytest.mark.parametrize(
        ("data", "words", "fix"),
        [
            ('timezone = "UTC"\n'.encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
            ('timezone = "UTC"\n'.encode("utf-16-le"), "UTF-16", "iconv -f UTF-16"),
            ("# ok\n# caf\u00e9\n".encode("latin-1"), "line 2 has the byte 0xe9", "iconv -f LATIN1"),
        ],
    )
    def test_another_encoding_is_explained(self, home: Path, data: bytes, words: str, fix: str) -> None:
        path = home / "other.toml"
        path.write_bytes(data)
        error = refused(path)
        assert words in str(error)
        assert fix in error.hint


class TestVariables:
    @pytest.mark.parametrize("name", LINKS)
    def test_a_service_link_is_no_key(self, home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, LINKS[name])
        assert load_config(home / "clawbus.toml").data_dir == home / "d"
        assert service_links(os.environ) == [name]

    def test_config_check_lists_them(self, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in LINKS.items():
            monkeypatch.setenv(name, value)
        assert cli("config", "check").result["ignored_variables"] == sorted(LINKS)
        assert "ignored: CLAWBUS_ENV_PATH, " in cli("config", "check", "--pretty").out

    @pytest.mark.parametrize(
        ("name", "value", "advice"),
        [
            ("CLAWBUS_AGENT__X", "1", "CLAWBUS_AGENTS__X"),
            ("CLAWBUS_DATA_DIR__X", "1", "no such key"),
            ("CLAWBUS_RUNTIME_KIND", "process", "CLAWBUS_RUNTIME__KIND"),
            ("CLAWBUS_RUNTIME__KIDN", "process", "runtime.kidn (environment variable CLAWBUS_RUNTIME__KIDN)"),
            ("CLAWBUS_AGENTS__ECHO__PROVDER", "echo", "did you mean 'provider'"),
            ("CLAWBUS_PORT", "9464", "no such key"),
            ("CLAWBUS_DATADIR", "/x", "CLAWBUS_DATA_DIR"),
        ],
    )
    def test_every_other_one_is_refused(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, advice: str
    ) -> None:
        monkeypatch.setenv(name, value)
        error = refused(home / "clawbus.toml")
        assert name in str(error) or "provder" in str(error)
        assert advice in str(error)

    def test_who_only_looks_is_warned(self, home: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLAWBUS_AGENT__X", "1")
        (home / "d" / "logs").mkdir(parents=True)
        (home / "d" / "logs" / "clawbus.log").write_text('{"event": "x"}\n')
        answer = cli("logs")
        assert answer.result["events"] == [{"event": "x"}]
        assert answer.err.startswith("warning: environment variable CLAWBUS_AGENT__X")
        for command in (("config", "check"), ("serve",)):
            assert cli(*command).envelope["error"]["code"] == "CONFIG_INVALID"


class TestValues:
    def test_the_providers_are_the_runner_s(self) -> None:
        assert set(config.PROVIDERS) == set(container_runner.providers.PROVIDERS)

    def test_the_kinds_of_permissions_are_the_runner_s(self) -> None:
        assert get_args(config.ToolKind) == (permissions.DEFAULT, *permissions.KINDS)

    def test_a_preset_fills_in_what_the_table_leaves_out(self, tmp_path: Path) -> None:
        (tmp_path / "clawbus.toml").write_text(
            '[agents.a]\npreset = "claude"\nenv = { A = "1", DISABLE_AUTOUPDATER = "0" }\n'
            '[agents.b]\npreset = "claude"\ncommand = ["mine"]\nmode = "plan"\n'
        )
        a, b = load_config(tmp_path / "clawbus.toml").agents.values()
        assert (a.provider, a.command, a.mode) == ("acp", ("claude-agent-acp",), "default")
        assert (a.env["A"], a.env["DISABLE_AUTOUPDATER"]) == ("1", "0")
        assert (b.provider, b.command, b.mode) == ("acp", ("mine",), "plan")

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ('[agents.a]\nprovider = "ehco"', "agents.a.provider"),
            ("[agents.a]\ntimeout_s = inf", "agents.a.timeout_s"),
            ('[agents.a]\nprovider = "acp"', "agents.a.command"),
            ('[agents.a]\npreset = "cluade"', "did you mean 'claude'"),
            ('[agents.a]\npreset = "claude"\npermissions = { fly = "allow" }', "agents.a.permissions.fly"),
            ('[agents.a]\npreset = "claude"\npermissions = { read = "maybe" }', "agents.a.permissions.read"),
            ('[agents.a]\ncommand = ["x"]\nmode = "safe"', "agents.a.mode"),
            ('[agents.a]\npreset = "codex"\ntimeout_s = 9\nclaim_max_s = 5', "agents.a.claim_max_s"),
            ("[runtime]\nidle_stop_s = 1e300", "runtime.idle_stop_s"),
            ("[sweep]\nceiling_s = nan", "sweep.ceiling_s"),
            ("[runtime]\nspawn_backoff_s = 700.0", "runtime.spawn_backoff_s"),
            ("[delivery]\nretry_base_s = 10.0\nretry_max_s = 5.0", "delivery.retry_base_s"),
            ('[agents.a.env]\n"A=B" = "x"', "agents.a.env"),
            ('[agents.a.env]\nA = "x\\u0000"', "agents.a.env"),
            ('data_dir = "a\\u0000b"', "data_dir"),
        ],
    )
    def test_what_cannot_work_is_refused_at_the_door(self, home: Path, text: str, key: str) -> None:
        path = home / "wrong.toml"
        path.write_text(text)
        assert key in str(refused(path))


NO_ZONES = """
import sys, zoneinfo
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "tzdata":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hide())
assert zoneinfo.TZPATH == () and not zoneinfo.available_timezones()
from daemon.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class TestZones:
    @staticmethod
    def without_zones(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", NO_ZONES, *arguments],
            env={**os.environ, "PYTHONTZPATH": ""}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    @pytest.mark.parametrize("zone", [None, "UTC", "Etc/UTC"])
    def test_utc_needs_no_database(self, home: Path, zone: str | None) -> None:
        if zone is not None:
            (home / "clawbus.toml").write_text(f'timezone = "{zone}"\n')
        done = self.without_zones("config", "check", "--json")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_a_named_zone_says_what_to_install(self, home: Path) -> None:
        (home / "clawbus.toml").write_text('timezone = "Europe/Vienna"\n')
        done = self.without_zones("config", "check", "--pretty")
        assert done.returncode == 1
        assert "apt-get install tzdata" in done.stderr

    def test_a_series_in_utc_is_the_same_by_every_name(self) -> None:
        now = 1_795_219_200_000
        assert next_cron("30 9 * * *", now, "UTC") == next_cron("30 9 * * *", now, "Etc/UTC")
        assert next_cron("30 9 * * *", now, "UTC") == now + (9 * 60 + 30) * 60_000
