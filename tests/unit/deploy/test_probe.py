"""A deploy's probe: its configuration, its webhook's other side, and what it ends before it begins."""

import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.config.loading import load_config
from daemon.deploy.probe import Probe, configuration, end_daemons
from daemon.deploy.probe_ways import AGENT, Caller, Local, Way, Webhook
from tests.support.webhooks import signature


@pytest.mark.parametrize(
    ("kind", "table", "host"),
    [("docker", "docker", "unix:///x/docker.sock"), ("podman", "podman", "unix:///x/podman.sock")],
)
def test_the_probe_asks_the_same_engine(kind: str, table: str, host: str, tmp_path: Path) -> None:
    path = tmp_path / "clawbus.toml"
    path.write_text(f'[runtime]\nkind = "{kind}"\n[{table}]\nhost = "{host}"\n', encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(configuration(load_config(path), tmp_path))
    assert found["runtime"]["kind"] == kind
    assert found[table]["host"] == host


def test_a_webhook_s_answers_are_counted_by_their_key_and_a_forged_one_is_refused() -> None:
    way = Webhook()
    try:
        hook = tomllib.loads("\n".join(way.configuration()))["channels"]["webhook"]["hooks"]["probe"]

        def answer(key: str, text: str, secret: str) -> int:
            body, stamp = f'{{"in_reply_to": "m", "content": "{text}"}}'.encode(), str(int(time.time()))
            signed = {"x-clawbus-timestamp": stamp, "x-clawbus-signature": signature(secret, stamp, body)}
            headers = {"idempotency-key": key, **signed}
            return httpx.post(hook["reply_url"], content=body, headers=headers, trust_env=False).status_code

        right = hook["reply_secret"]
        sent = [("a", "one", right), ("a", "one", right), ("b", "two", "another secret")]
        assert [answer(*one) for one in sent] == [200, 200, 401]
        assert (len(way.answers("m")), way.answers("other"), way.forged) == (1, [], 1)
        assert answer("c", "three", right) == 200
        assert len(way.answers("m")) == 2
        assert way.send("nonce") is None, "nothing listens there yet"
    finally:
        way.close()


def test_only_daemons_of_the_probe_s_own_configuration_are_ended(tmp_path: Path) -> None:
    wait = [sys.executable, "-c", "input()", "--config"]
    mine, other = tmp_path / "clawbus.toml", tmp_path / "clawbus.toml.other"
    started = [
        subprocess.Popen([*wait, str(path), word], stdin=subprocess.PIPE)
        for path, word in ((mine, "serve"), (mine, "status"), (other, "serve"))
    ]
    try:
        end_daemons(mine)
        assert started[0].wait(timeout=30) == -9
        assert [one.poll() for one in started[1:]] == [None, None]
    finally:
        for one in started:
            one.kill()
            one.communicate(timeout=30)


class Dying(Probe):
    """A probe whose daemon dies inside of a transaction, once."""

    done: list[str]

    def _send(self, way: Way) -> tuple[str, str]:
        self.done.append("send")
        return "m", "nonce"

    def _kill_daemon(self) -> None:
        self.done.append("kill")
        if "start" not in self.done:
            self._journal(self.ways[0]).touch()

    def _start(self) -> None:
        self.done.append("start")
        self._journal(self.ways[0]).unlink()

    def _delivered_once(self, way: Way, message: str, nonce: str) -> None:
        self.done.append("delivered")


def no_client(_: Path) -> Caller:
    raise AssertionError("nobody is called")


def test_a_daemon_that_dies_inside_of_a_transaction_is_started_before_its_agents_are_waited_for(tmp_path: Path) -> None:
    """They cannot read a file whose journal only the host may undo: the probe would wait for them until its limit."""
    (tmp_path / "clawbus.toml").touch()
    way = Local(lambda: no_client(tmp_path))
    probe = Dying(load_config(tmp_path / "clawbus.toml"), tmp_path, [], no_client, 30.0, ways=(way,))
    probe.done = []
    (tmp_path / "data" / "sessions" / AGENT / way.session / "in").mkdir(parents=True)
    assert [message for _, message, _ in probe._send_and_kill()] == ["m"]
    assert probe.done == ["send", "kill", "start", "delivered", "send", "kill"]
