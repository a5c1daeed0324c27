"""`clawbus config check`: what the daemon would refuse at its start, it refuses; nothing is opened for that."""

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

HOOK = "[channels.webhook.hooks.h]\nagent = 'echo'\nsession = 's'\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (HOOK + "secret_env = 'NOT_SET_HERE'", "channels.webhook.hooks.h.secret_env"),
        (HOOK + "secrt = 'x'", "channels.webhook.hooks.h.secrt"),
        (HOOK.replace("echo", "nobody") + "secret = '0123456789'", "channels.webhook.hooks.h.agent"),
        ("[channels.pigeon]", "channels.pigeon"),
    ],
)
def test_a_channel_s_wrong_table_is_refused(cli: CommandLine, text: str, key: str) -> None:
    with cli.config.open("a") as file:
        file.write(text)
    answer = cli("config", "check")
    assert answer.code == 1
    assert f"{key}: " in answer.envelope["error"]["message"]


def test_every_channel_s_fault_is_told_at_once(cli: CommandLine) -> None:
    with cli.config.open("a") as file:
        file.write(HOOK + "secrt = 'x'\n[channels.pigeon]\n")
    message = cli("config", "check").envelope["error"]["message"]
    assert "channels.webhook.hooks.h.secrt" in message
    assert "channels.pigeon" in message


def test_a_good_one_opens_nothing(cli: CommandLine, home: Path) -> None:
    with cli.config.open("a") as file:
        file.write(HOOK + "secret = '0123456789'\n")
    assert cli("config", "check").result["channels"] == ["webhook"]
    assert list((home / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("hooks", "shared"),
    [
        ((("a", "github", "{body.sender.login}"), ("b", "gitlab", "{body.user_username}")), True),
        ((("a", "clawbus", "{body.who}"), ("b", "clawbus", "{body.who}")), True),
        ((("a", "github", "{body.sender.login}"), ("b", "github", "{body.sender.login}")), False),
        ((("a", "clawbus", "{hook}:{body.who}"), ("b", "clawbus", "{body.who}")), False),
        ((("a", "clawbus", "{body.who}"),), False),
    ],
)
def test_hooks_whose_people_look_the_same_are_named(
    cli: CommandLine, hooks: tuple[tuple[str, str, str], ...], *, shared: bool
) -> None:
    with cli.config.open("a") as file:
        for name, signature, sender in hooks:
            file.write(f"[channels.webhook.hooks.{name}]\nsignature = '{signature}'\nsender = '{sender}'\n")
            file.write("secret = '0123456789'\nreply = 'none'\n")
    notes = cli("config", "check").result["cautions"]
    assert [one.startswith("channels.webhook: hooks a, b share people") for one in notes] == [True] * shared
    assert ("note: channels.webhook" in cli("config", "check", "--pretty").out) == shared


@pytest.mark.parametrize("user", ["root", "0", "0:0", "1000:0", "-1", "99999999999", "4294967295"])
def test_a_user_that_no_container_could_have_is_refused(cli: CommandLine, user: str) -> None:
    with cli.config.open("a") as file:
        file.write(f"[docker]\nuser = '{user}'\n")
    answer = cli("config", "check")
    assert answer.code == 1
    assert "docker.user" in answer.envelope["error"]["message"]


def test_a_socket_in_no_folder_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    with cli.config.open("a") as file:
        file.write(f"[control]\nsocket = '{tmp_path / 'nowhere' / 'c.sock'}'\n")
    assert cli("config", "check").envelope["error"]["code"] == "SOCKET_PATH"


def test_a_command_without_a_provider_is_run(cli: CommandLine) -> None:
    with cli.config.open("a") as file:
        file.write("[agents.runs]\ncommand = ['true']\n")
    assert cli("config", "check").result["agents"]["runs"] == "command"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[routes.a]\nagent = "echo"\n[agents.echo]', "[[routes]]"),
        ('[agents.echo]\n[schedules.x]\nagent = "echo"\ntext = "hi"\nevery = "5m"', "did you mean 'every_s'?"),
        ("[agents.echo]\n[deploy]\nwarm_s = 500", "less than deploy.warm_limit_s, 180"),
        ('[agents.echo]\nenv_file = "/nowhere/env"', "agents.echo.env_file: /nowhere/env cannot be read"),
        ('[agents.echo]\nsecret_file = { KEY = "/nowhere/key" }', "secret_file.KEY: /nowhere/key cannot be read"),
        ('[agents.echo]\nsecret_file = { KEY = "/dev/null" }', "/dev/null is not a regular file"),
    ],
)
def test_what_a_start_or_a_deploy_would_fail_on_is_refused(cli: CommandLine, home: Path, text: str, said: str) -> None:
    (home / "clawbus.toml").write_text(f'data_dir = "data"\n{text}\n')
    refused = cli("config", "check")
    assert refused.code == 1
    assert said in refused.envelope["error"]["message"]
    assert "delivery" not in refused.envelope["error"]["message"]


def test_a_file_that_nobody_can_write_into_is_said_to_be_none(cli: CommandLine) -> None:
    answer = cli("config", "check", "--config", "/dev/null", "--json")
    assert answer.code == 0
    assert answer.envelope["next_actions"] == [], "init cannot write there"
    assert "/dev/null (no regular file)" in cli("config", "check", "--config", "/dev/null", "--pretty").out
