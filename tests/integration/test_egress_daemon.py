"""The gate in a real daemon with real agents, runtime `process`; test_docker_daemon.py tells the same with Docker."""

import sys
from collections.abc import Callable

from tests.support import egress_story
from tests.support.daemon import RealDaemon

Make = Callable[..., RealDaemon]


def test_an_agent_asks_a_model_and_never_sees_the_key(make_daemon: Make) -> None:
    with egress_story.model() as server:
        daemon = make_daemon()
        key = daemon.root / "model.key"
        daemon.configure(
            daemon.config.read_text().partition("\n")[2] + egress_story.tables(server, key, sys.executable)
        )
        egress_story.tell(daemon, server, key)
        names = [event["target"] for event in daemon.events("egress_request")]
        assert names == ["/model/one", "/model/two", "/model/three"]
        assert [event["code"] for event in daemon.events("egress_failed")] == ["EGRESS_SECRET"]


def test_a_configuration_that_cannot_work_is_refused(make_daemon: Make) -> None:
    daemon = make_daemon(
        """
[agents.echo]
[egress.routes.own]
upstream = "http://0.0.0.0:80"
header = "x-api-key"
agents = ["ecko"]
[egress.routes.odd]
upstream = "https://user:pw@host.example"
header = "host"
agents = []
"""
    )
    said = daemon.cli("config", "check")
    assert said.error == "CONFIG_INVALID"
    text = said.envelope["error"]["message"]
    assert "egress.routes.odd.upstream" in text
    daemon.configure(daemon.config.read_text().partition("\n")[2].partition("[egress.routes.odd]")[0])
    text = daemon.cli("config", "check").envelope["error"]["message"]
    assert "egress.private_targets" in text
    assert "there is no agent 'ecko'" in text
    assert "header and secret_file belong together" in text
