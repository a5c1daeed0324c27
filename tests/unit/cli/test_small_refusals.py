"""Options and states that a stranger meets: each is taken, or refused by name."""

import sqlite3
from pathlib import Path

import pytest

from daemon.core.errors import DataFolderError
from daemon.store.data_folder import DataFolder
from daemon.store.registry import Registry
from schema.migrate import VERSION
from tests.support.command_line import CommandLine
from tests.support.fake_operations import FakeOperations


@pytest.mark.parametrize("group", ["session", "dead", "image", "config"])
def test_a_group_takes_the_global_options(cli: CommandLine, group: str) -> None:
    answer = cli(group, "--json", "--data", "elsewhere", "nonsense")
    assert (answer.code, answer.envelope["error"]["code"]) == (2, "USAGE")
    assert "nonsense" in answer.envelope["error"]["message"]


def test_what_a_group_is_given_holds_for_its_commands(cli: CommandLine, home: Path) -> None:
    assert cli("config", "--data", "/one", "--json", "check").result["data_dir"] == "/one"


def test_logs_of_a_session_that_there_is_not(cli: CommandLine) -> None:
    assert cli("logs", "--session", "echo/nobody").envelope["error"]["code"] == "UNKNOWN_SESSION"
    assert cli("logs", "--session", "nonsense").envelope["error"]["code"] == "USAGE"


def test_a_newer_registry_is_refused_by_readers_too(cli: CommandLine, home: Path) -> None:
    connection = sqlite3.connect(home / "data" / "central.db")
    connection.execute(f"PRAGMA user_version={VERSION + 1}")
    connection.close()
    assert cli("status").envelope["error"]["code"] == "SCHEMA_TOO_NEW"


class TestFolder:
    def test_somebody_s_files_are_no_data_folder(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(DataFolderError, match=r"thesis\.tex"):
            DataFolder.open(tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]

    def test_ours_with_more_in_it_is_taken(self, tmp_path: Path) -> None:
        DataFolder.open(tmp_path / "d").close()
        (tmp_path / "d" / "notes.txt").write_text("")
        DataFolder.open(tmp_path / "d").close()

    def test_an_agent_s_folder_may_be_there_before_the_first_start(self, tmp_path: Path) -> None:
        (tmp_path / "d" / "agents" / "mine").mkdir(parents=True)
        with DataFolder.open(tmp_path / "d") as folder:
            folder.make_agents(("mine", "other"))
            assert sorted(one.name for one in folder.agents_dir.iterdir()) == ["mine", "other"]


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which systemd runs the daemon of this folder."""
    monkeypatch.setattr("daemon.cli.invocation.unit_of", lambda folder: "second-bus")


@pytest.mark.usefixtures("unit")
class TestUnderSystemd:
    def test_the_next_step_is_the_unit_s_start(self, cli: CommandLine, home: Path) -> None:
        DataFolder.open(home / "data").close()
        Registry(home / "data" / "central.db").install_id(1)
        said = cli("status")
        assert said.result["source"] == "files"
        assert said.envelope["next_actions"][0] == {
            "command": "systemctl start second-bus",
            "description": "start the daemon",
        }

    def test_an_error_that_needs_a_start_names_the_unit_s(self, cli: CommandLine) -> None:
        said = cli("status")
        assert said.envelope["error"]["code"] == "DATA_FOLDER"
        assert said.envelope["fix"] == "Start the daemon once: `systemctl start second-bus`."

    def test_a_command_that_needs_the_daemon_names_the_unit_s(self, cli: CommandLine) -> None:
        assert "`systemctl start second-bus`" in cli("send", "x", "-a", "echo", "-s", "s").envelope["fix"]


def test_without_systemd_the_next_step_is_a_start_in_the_terminal(cli: CommandLine, home: Path) -> None:
    DataFolder.open(home / "data").close()
    Registry(home / "data" / "central.db").install_id(1)
    assert cli("status").envelope["next_actions"][0]["command"] == "clawbus serve"


def test_a_mailbox_with_a_space_is_quoted(cli: CommandLine, operations: FakeOperations) -> None:
    answer = cli("send", "x", "-a", "echo", "-s", "s", "--mailbox", "my box")
    assert answer.envelope["next_actions"][0]["command"] == "clawbus mailbox 'my box'"


@pytest.mark.parametrize("word", ["abort", "rollback"])
def test_without_releases_there_is_no_deploy_to_end(cli: CommandLine, word: str) -> None:
    answer = cli("deploy", word)
    assert "deploy.root is not set" in answer.envelope["error"]["message"]


def test_json_content_is_not_silently_text_at_a_place(cli: CommandLine) -> None:
    answer = cli("send", "{}", "--json-content", "--place", "kitchen")
    assert answer.code == 2
    assert "--json-content does not go with --place" in answer.err + answer.out


def test_the_process_runtime_needs_no_image(cli: CommandLine) -> None:
    assert cli("image", "show").result["images"] == []
    assert "No image is needed" in cli("image", "show", "--pretty").out


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("run", "show", ""), "ID"), (("dead", "drop", ""), "ID..."), (("release", "show", ""), "RELEASE"),
        (("session", "show", ""), "AGENT"), (("send", "x", "--agent", ""), "--agent"),
    ],
)  # fmt: skip
def test_an_empty_argument_has_the_name_that_the_help_gives_it(
    cli: CommandLine, words: tuple[str, ...], name: str
) -> None:
    assert f" {name} is empty" in f" {cli(*words).envelope['error']['message'].removeprefix('Invalid value: ')}"


def test_the_choices_of_a_missing_argument_are_in_one_line(cli: CommandLine) -> None:
    said = cli("completion").envelope["error"]["message"]
    assert "Choose from: bash, zsh, fish" in said
    assert "\n" not in said


def test_a_mistyped_backup_is_named_before_what_runs(cli: CommandLine, home: Path) -> None:
    DataFolder.open(home / "data").close()
    with DataFolder.open(home / "data"):
        said = cli("restore", str(home / "none"), "--replace").envelope["error"]
    assert "is not a backup of a data folder" in said["message"]


def test_an_unknown_message_leads_to_the_list_of_messages(cli: CommandLine, home: Path) -> None:
    DataFolder.open(home / "data").close()
    said = cli("message", "show", "nobody-has-it").envelope
    assert said["error"]["code"] == "UNKNOWN_MESSAGE"
    assert [one["command"] for one in said["next_actions"]] == ["clawbus message list"]
    assert cli("message", "list").code == 0
