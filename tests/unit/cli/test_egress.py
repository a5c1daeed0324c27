"""`egress list|show` and what `doctor` says of budgets and secrets: from the files, without a daemon."""

import subprocess
import time
from pathlib import Path

import pytest

from daemon.core.egress_usage import UsageRow, day_of
from daemon.core.zones import zone
from daemon.store.registry import Registry
from tests.support.command_line import CommandLine

CONFIG = """
[egress.routes.model]
upstream = "https://api.example.com"
header = "x-api-key"
secret_file = "{key}"
api = "anthropic"
agents = ["echo"]
[egress.connect.web]
hosts = ["pypi.org:443"]
agents = ["*"]
[egress.budgets.echo]
requests_per_day = 3
"""
SECRET = "sk-4711-never-printed"


@pytest.fixture(autouse=True)
def used(home: Path) -> None:
    with (home / "clawbus.toml").open("a") as file:
        file.write(CONFIG.format(key=home / "key"))
    (home / "key").write_text(SECRET)
    (home / "data" / "clawbus.version").write_text("1\n")
    registry = Registry(home / "data" / "central.db")
    registry.install_id(1)
    today = day_of(time.time_ns() // 1_000_000, zone("UTC"))
    registry.write_egress(
        [UsageRow(today, "echo", "model", 3, 1, 0, 70, 7), UsageRow(today, "echo", "", 0, 5)], "2000-01-01"
    )


def codes(cli: CommandLine) -> dict[str, dict[str, object]]:
    return {one["code"]: one for one in cli("doctor").envelope["result"]["diagnoses"]}


def test_lists_and_shows_without_the_secret(cli: CommandLine) -> None:
    result = cli("egress", "list").result
    ways = {one["name"]: one for one in result["ways"]}
    assert (ways["model"]["requests"], ways["model"]["tokens_in"], ways["web"]["requests"]) == (3, 70, 0)
    assert result["refused_elsewhere"] == 5
    assert result["budgets"][0]["used_up"] == "3 of 3 requests"
    shown = cli("egress", "show", "model").result
    assert [(one["agent"], one["requests"], one["tokens_out"]) for one in shown["usage"]] == [("echo", 3, 7)]
    for form in ("--json", "--pretty"):
        assert SECRET not in cli("egress", "list", form).out + cli("egress", "show", "model", form).out
    assert "3 of 3" in cli("egress", "list", "--pretty").out
    assert cli("egress", "show", "nothing").envelope["error"]["code"] == "UNKNOWN_EGRESS"


def test_a_budget_that_is_used_up_is_a_finding_until_it_allows_more(cli: CommandLine, home: Path) -> None:
    found = codes(cli)["EGRESS_BUDGET"]
    assert str(found["command"]).endswith("egress list")
    text = (home / "clawbus.toml").read_text()
    (home / "clawbus.toml").write_text(text.replace("requests_per_day = 3", "requests_per_day = 4"))
    assert "EGRESS_BUDGET" not in codes(cli)


def test_a_secret_that_cannot_be_read_is_a_finding_that_its_repair_ends(cli: CommandLine, home: Path) -> None:
    assert "EGRESS_SECRET" not in codes(cli)
    for spoil in (lambda: (home / "key").write_text(""), (home / "key").unlink):
        spoil()
        found = codes(cli)["EGRESS_SECRET"]
        subprocess.run(["sh", "-c", str(found["command"])], input=SECRET, text=True, check=True)
        assert "EGRESS_SECRET" not in codes(cli)
    assert (home / "key").stat().st_mode & 0o077 == 0
