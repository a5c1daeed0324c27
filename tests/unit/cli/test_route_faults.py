"""`config check` and `route list` name a stored route whose agent is gone, and the named command ends the finding."""

import json
from pathlib import Path

import pytest

from daemon.cli.main import main
from daemon.store.data_folder import DataFolder
from daemon.store.registry import Registry
from daemon.store.routes import StoredRoute, add_route
from tests.support.clock import MovedClock


def test_a_route_to_an_agent_that_is_gone_is_named_until_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "clawbus.toml"
    file.write_text('data_dir = "data"\n[runtime]\nkind = "process"\n[agents.echo]\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    keys = {"name": "old", "channel": "local", "place": "room", "agent": "gone"}
    with DataFolder.open(tmp_path / "data", MovedClock()) as folder:
        Registry(folder.central_db).with_file(lambda db: add_route(db, StoredRoute("old", keys, 1, "ada", None)))
    assert main(["config", "check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["error"]["code"] == "ROUTE_FAULT"
    assert "there is no agent gone" in found["error"]["message"]
    assert main(["route", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["result"]["routes"]
    assert (row["source"], row["added_by"]) == ("command", "ada")
    assert "no agent gone" in row["fault"]
    assert main(["route", "test", "--channel", "local", "--place", "room", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["refusals"][0]["reason"] == "AGENT_GONE"
    assert "`clawbus route remove old`" in found["fix"]
    assert main(["route", "remove", "old"]) == 0
    assert main(["config", "check"]) == 0
