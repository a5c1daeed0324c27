"""The webhook channel of a real daemon: a signed request in, an agent's turn, a signed post out to a real receiver."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.support.agents import ECHO, obedient
from tests.support.daemon import RealDaemon, eventually
from tests.support.webhooks import Received, Receiver, free_port, post, receiving, signature

Make = Callable[..., RealDaemon]

IN, OUT = "inbound-secret", "outbound-secret"
HOOK = """
[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.work]
agent = "prog"
session = "*"
secret = "{secret}"
reply_url = "{url}"
reply_secret_env = "REPLY_SECRET"
"""


def started(make_daemon: Make, receiver: Receiver) -> tuple[RealDaemon, str]:
    """A daemon with the hook, and the hook's address."""
    port = free_port()
    daemon = make_daemon(obedient() + ECHO + HOOK.format(port=port, secret=IN, url=receiver.url))
    daemon.environment["REPLY_SECRET"] = OUT
    daemon.start()
    return daemon, f"http://127.0.0.1:{port}/hooks/work/s"


def taken(receiver: Receiver) -> list[Received] | None:
    """Every post so far, once one was taken."""
    return receiver.posts if any(one.taken for one in receiver.posts) else None


def test_a_signed_request_is_answered_by_a_signed_post(make_daemon: Make) -> None:
    with receiving() as receiver:
        daemon, url = started(make_daemon, receiver)
        response = post(url, IN, "say hello", message_id="order-1")
        assert (response.status_code, response.json()["id"]) == (202, "order-1")
        reply = eventually("posted", lambda: receiver.posts)[0]
        assert reply.json["content"]["text"] == "say hello".join('""')
        assert reply.json["in_reply_to"] == "order-1"
        assert (reply.json["agent"], reply.json["session"]) == ("prog", "s")
        assert reply.headers["x-clawbus-signature"] == signature(OUT, reply.headers["x-clawbus-timestamp"], reply.body)
        assert reply.headers["idempotency-key"].endswith(reply.json["id"])
        eventually("recorded", lambda: "delivered" in daemon.life("prog", "s", "order-1"))
        assert len(receiver.posts) == 1
        daemon.at_rest = True


def test_a_receiver_that_is_down_for_a_while_gets_the_answer_with_the_same_key(make_daemon: Make) -> None:
    with receiving(failures=3) as receiver:
        daemon, url = started(make_daemon, receiver)
        post(url, IN, "say hello", message_id="order-2")
        posts = eventually("taken", lambda: taken(receiver))
        assert len({one.headers["idempotency-key"] for one in posts}) == 1
        assert len({one.body for one in posts}) == 1
        eventually("recorded", lambda: "delivered" in daemon.life("prog", "s", "order-2"))
        assert [one.taken for one in receiver.posts] == [False, False, False, True]


def test_an_answer_outlives_a_daemon_that_dies_before_it_is_delivered(make_daemon: Make) -> None:
    with receiving(failures=1) as receiver:
        daemon, url = started(make_daemon, receiver)
        post(url, IN, "say hello", message_id="order-3")
        eventually("tried", lambda: receiver.posts)
        daemon.kill()
        daemon.start()
        posts = eventually("taken", lambda: taken(receiver))
        assert len({one.headers["idempotency-key"] for one in posts}) == 1


def test_refusals_say_why_and_store_nothing(make_daemon: Make) -> None:
    with receiving() as receiver:
        daemon, url = started(make_daemon, receiver)
        wrong = post(url, "another-secret", "say x", message_id="bad-1")
        old = post(url, IN, "say x", message_id="bad-2", stamp=1)
        bare = httpx.post(url, content=b"{}", headers={"content-type": "application/json"}, trust_env=False)
        path = post(url.rsplit("/", 1)[0] + "/..%2f..", IN, "say x", message_id="bad-3")
        for response in (wrong, old, bare):
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "SIGNATURE_REFUSED"
            assert response.json()["fix"]
        assert 400 <= path.status_code < 500
        assert daemon.status()["sessions"]["total"] == 0

        assert post(url, IN, "say hello", message_id="order-4").json()["duplicate"] is False
        assert post(url, IN, "say hello", message_id="order-4").json()["duplicate"] is True
        other = post(url, IN, "say something else", message_id="order-4")
        assert (other.status_code, other.json()["error"]["code"]) == (409, "ID_CONFLICT")
        assert "prog" not in other.text, "the sender need not know which agent answers at the hook"
        eventually("posted", lambda: receiver.posts)
        assert len(daemon.show("prog", "s")["messages"]) == 1


def test_secrets_are_in_no_log(make_daemon: Make) -> None:
    with receiving() as receiver:
        daemon, url = started(make_daemon, receiver)
        post(url, "another-secret", "say x", message_id="bad-1")
        post(url, IN, "say hello", message_id="order-5")
        eventually("posted", lambda: receiver.posts)
        daemon.stop()
        written = daemon.log_tail() + (daemon.data / "logs" / "clawbus.log").read_text(encoding="utf-8")
        assert "webhook_accepted" in written
        assert not [secret for secret in (IN, OUT, "another-secret") if secret in written]


def test_the_page_s_own_github_hook_makes_a_session_for_each_pull_request_and_no_dead_letter(make_daemon: Make) -> None:
    page = (Path(__file__).parents[2] / "docs" / "channels.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "hooks.github" in block)
    port = free_port()
    daemon = make_daemon(
        ECHO.replace("agents.echo", "agents.ops")
        + ECHO.replace("agents.echo", "agents.reviewer")
        + example.replace("127.0.0.1:8650", f"127.0.0.1:{port}")
    )
    for name in re.findall(r'"(/etc/clawbus/\S+)"', example):
        path = daemon.root / Path(name).name
        path.write_text(OUT if "reply" in name else IN)
        path.chmod(0o600)
        daemon.config.write_text(daemon.config.read_text().replace(name, str(path)))
    daemon.environment["DEPLOY_HOOK_SECRET"] = IN
    daemon.start()

    def deliver(kind: str, body: dict[str, object]) -> dict[str, object]:
        raw = json.dumps(body).encode()
        headers = {
            "content-type": "application/json",
            "x-github-event": kind,
            "x-github-delivery": hashlib.sha256(raw).hexdigest(),
            "x-hub-signature-256": f"sha256={hmac.new(IN.encode(), raw, hashlib.sha256).hexdigest()}",
        }
        done = httpx.post(f"http://127.0.0.1:{port}/hooks/github", content=raw, headers=headers, trust_env=False)
        assert done.status_code == 202
        return done.json()

    for kind, body in (
        ("pull_request", {"action": "opened", "pull_request": {"number": 7}}),
        ("issue_comment", {"action": "created", "issue": {"number": 7}, "comment": {"body": "hi"}}),
        ("issue_comment", {"action": "created", "issue": {"number": 8}, "comment": {"body": "hi"}}),
    ):
        assert deliver(kind, body)["duplicate"] is False
    assert deliver("ping", {"zen": "Design for failure."})["ignored"] is True
    assert deliver("pull_request", {"action": "closed", "pull_request": {"number": 7}})["ignored"] is True

    def settled() -> bool:
        shown = [one for name in ("pr-7", "pr-8") for one in daemon.show("reviewer", name)["messages"]]
        return [one["status"] for one in shown] == ["completed"] * 3 and not daemon.status()["queues"]["undelivered"]

    eventually("settled", settled)
    assert daemon.status()["queues"]["dead_letters"] == 0
