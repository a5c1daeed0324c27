"""What a role's daemon keeps of a configuration that several share: its own tables, and no secret of another role."""

from pathlib import Path

from daemon.config.loading import load_config
from daemon.config.ownership import owned, ownership_of

SHARED = """
role = "host"

[ownership.host]
agents = ["here"]
channels = ["ours"]

[ownership.cluster]
agents = ["there"]
channels = ["theirs"]

[agents.here]
network = "none"
secret_file = { KEY = "/etc/clawbus/here.key" }

[agents.there]
network = "none"
secret_file = { KEY = "/etc/clawbus/there.key" }

[channels.ours]
type = "webhook"
port = 8801
hooks.main = { secret_file = "/etc/clawbus/ours.hook" }

[channels.theirs]
type = "webhook"
port = 8802
hooks.main = { secret_file = "/etc/clawbus/theirs.hook" }

[egress.routes.ours]
upstream = "https://ours.example"
agents = ["here"]
header = "x-api-key"
secret_file = "/etc/clawbus/ours.route"

[egress.routes.theirs]
upstream = "https://theirs.example"
agents = ["there"]
header = "x-api-key"
secret_file = "/etc/clawbus/theirs.route"

[egress.routes.everybody]
upstream = "https://all.example"
agents = ["*"]
header = "x-api-key"
secret_file = "/etc/clawbus/all.route"

[egress.connect.their_hosts]
agents = ["there"]
hosts = ["theirs.example:443"]
"""


def test_a_role_keeps_only_the_tables_and_the_secrets_of_its_own_agents(tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(SHARED, encoding="utf-8")
    config = load_config(path)
    kept = owned(config, ownership_of(config))
    assert (set(kept.agents), set(kept.egress.routes), set(kept.egress.connect)) == (
        {"here"},
        {"ours", "everybody"},
        set(),
    )
    dumped = str(kept.model_dump(exclude={"ownership"}))
    assert "ours.hook" in dumped
    assert "here.key" in dumped
    for foreign in ("there.key", "theirs.hook", "theirs.route"):
        assert foreign not in dumped
