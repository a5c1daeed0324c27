"""The whole bus with Docker: the image built by the real command line, real containers, a real daemon."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.runtimes.image_source import source_digest
from tests.support import egress_story
from tests.support.agents import command_agent
from tests.support.daemon import RealDaemon, eventually
from tests.support.docker_bus import agents, docker, exists, give_program, inspect
from tests.support.socket_proxy import SocketProxy
from tests.support.webhooks import free_port, post, receiving

Make = Callable[..., RealDaemon]

pytestmark = pytest.mark.docker


@pytest.fixture(scope="session")
def image(base_image: str) -> Iterator[str]:
    """The agents' image under a name of its own, built as an operator builds it."""
    tag = f"clawbus-test-bus:{os.getpid()}"
    builder = RealDaemon("", runtime="docker")
    try:
        built = builder.cli("image", "build", "--base", base_image, "--tag", tag, timeout_s=600).result
        assert built["tag"] == tag
        assert built["source_digest"] == source_digest()
        yield tag
    finally:
        builder.close()
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False, timeout=120)


@pytest.fixture
def daemon(make_daemon: Make, image: str) -> RealDaemon:
    """A running daemon with the agents of docker_bus.py."""
    daemon = make_daemon(agents(image), runtime="docker")
    give_program(daemon)
    daemon.start()
    return daemon


def in_mid_turn(daemon: RealDaemon, session: str) -> str:
    """Send a message and return its id once its program is at work. `finish` lets it end."""
    message_id = daemon.post(f"hang /workspace/agent/{session}", agent="prog", session=session)
    eventually("in mid-turn", (daemon.data / "agents" / "prog" / session).exists, 90)
    return message_id


def finish(daemon: RealDaemon, session: str) -> None:
    (daemon.data / "agents" / "prog" / f"{session}.go").touch()


def test_a_message_is_answered_from_a_locked_down_container(daemon: RealDaemon, image: str) -> None:
    said = daemon.cli("send", "say hello", "--agent", "prog", "--session", "s", "--wait", "60")
    assert said.result["answer"]["text"] == "hello"
    saved = daemon.root / "saved"
    daemon.cli("send", "file a.txt made there", "-s", "prog/s", "--wait", "60", "--save", str(saved))
    assert (saved / "a.txt").read_text() == "made there"
    found = inspect(daemon.container("prog", "s")["container_id"])
    host, config = found["HostConfig"], found["Config"]
    assert (host["Memory"], host["MemorySwap"]) == (1024**3, 1024**3)
    assert (host["NanoCpus"], host["PidsLimit"]) == (1_000_000_000, 256)
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"] is True
    assert host["Init"] is True
    assert host["NetworkMode"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert config["User"] not in ("", "0", "root")
    assert not config["User"].startswith("0:")

    mounts = {mount["Destination"]: mount for mount in found["Mounts"]}
    assert {place: mount["RW"] for place, mount in mounts.items()} == {
        "/workspace/in": False, "/workspace/out": True, "/workspace/agent": True, "/workspace/home": True,
        "/etc/passwd": False, "/etc/group": False,
    }  # fmt: skip
    assert Path(mounts["/workspace/in"]["Source"]) == daemon.folder("prog", "s") / "in"

    labels = config["Labels"]
    live = daemon.show("prog", "s")["incarnation"]
    assert labels["clawbus.install"] == daemon.install_id()
    assert (labels["clawbus.agent"], labels["clawbus.session"]) == ("prog", "s")
    assert labels["clawbus.incarnation"] == live["id"]
    assert labels["clawbus.fingerprint"] == live["fingerprint"]
    assert labels["clawbus.source-digest"] == source_digest()
    assert found["Image"] == docker("image", "inspect", "--format", "{{.Id}}", image)
    daemon.at_rest = True


SCHEDULES = "".join(
    f"""
[schedules.{key}]
agent = "prog"
session = "s"
text = "say {key}"
every_s = 1
count = {count}
catch_up = "all"
check = {json.dumps(check)}
"""
    for key, count, check in (
        ("told", 2, "cat news; test -w /workspace/agent && ! test -w /workspace/in && echo in the container"),
        ("quiet", 1, "test -e nothing || true"),
        ("wrong", 1, "echo half; exit 3"),
    )
)
SCHEDULED = {
    "told": ["told\n\nrain\nin the container"] * 2,
    "quiet": [],
    "wrong": ["The agent could not answer this message. Reference: {id}."],
}


def test_schedules_of_the_configuration_and_of_the_agent_in_a_container(make_daemon: Make, image: str) -> None:
    """Their check programs run in the container, in the agent's folder; a death of the daemon loses and doubles none."""
    daemon = make_daemon(
        agents(image).replace("[agents.bare]", "min_schedule_s = 1\n[agents.bare]") + SCHEDULES, runtime="docker"
    )
    give_program(daemon)
    (daemon.data / "agents" / "prog" / "news").write_text("rain\n", encoding="utf-8")
    daemon.start()
    assert daemon.ask("plan 1 say own", agent="prog", session="s")["text"] == "planned"
    daemon.kill()
    daemon.start()

    def states() -> dict[str, tuple[str, int]]:
        rows = daemon.rows("prog", "s", "SELECT key, state, sent FROM schedules")
        return {row["key"]: (row["state"], row["sent"]) for row in rows}

    over = {"told": ("over", 2), "quiet": ("over", 1), "wrong": ("over", 1), "own": ("over", 2)}
    eventually("all have fired", lambda: states() == over)
    ends = "SELECT id, status FROM messages_in WHERE id LIKE 'schedule:%' ORDER BY seq"
    eventually("all have ended", lambda: all(row["status"] != "pending" for row in daemon.rows("prog", "s", ends)))
    ended = [(row["id"].rpartition("@")[0], row["status"]) for row in daemon.rows("prog", "s", ends)]
    assert sorted(ended) == [
        *[("schedule:own", "completed")] * 2, ("schedule:quiet", "completed"), *[("schedule:told", "completed")] * 2,
        ("schedule:wrong", "failed"),
    ]  # fmt: skip
    for key, texts in SCHEDULED.items():
        eventually("answered", lambda: len(daemon.entries(key)) >= len(texts))  # noqa: B023
        entries = daemon.entries(key)
        said = [text.format(id=entry["in_reply_to"]) for text, entry in zip(texts, entries, strict=True)]
        assert [entry["content"]["text"] for entry in entries] == said
    eventually("the agent's own", lambda: len(daemon.entries()) >= 2)
    said = [entry["content"]["text"] for entry in daemon.entries()]
    assert said in (["planned", "own"], ["planned", "own", "own"]), "two that are due at once may share a turn"
    daemon.at_rest = True


def test_the_program_sees_nothing_of_the_runner_and_cannot_write_its_inbox(daemon: RealDaemon) -> None:
    seen = daemon.ask("look", agent="bare", session="s")
    assert seen["importable"] == []
    assert not [entry for entry in seen["path"] if "clawbus" in entry]
    assert not [f"{name}={value}" for name, value in seen["environ"].items() if "clawbus" in f"{name}={value}".lower()]
    assert not [name for name in seen["environ"] if name.startswith(("PYTHON", "VIRTUAL_ENV"))]
    assert seen["executable"] == "/usr/bin/python3"
    assert seen["writable"] == ["/workspace/out", "/workspace/agent", "/workspace/home", "/tmp"]
    assert seen["uid"] not in (0, "0")
    assert (seen["user"], seen["home"]) == ("agent", "/workspace/home")


def test_a_secret_is_seen_by_its_agent_alone(make_daemon: Make, image: str, tmp_path: Path) -> None:
    """And by nobody who looks at the container, the logs, the reports or a backup."""
    value = f"sk-{os.urandom(16).hex()}"
    key, shared = tmp_path / "key", tmp_path / "shared"
    shared.mkdir()
    (shared / "note.txt").write_text("from the host", encoding="utf-8")
    read = (
        'cat "$KEY_FILE" | tr a-z A-Z; cat /srv/shared/note.txt; touch /srv/shared/x 2>/dev/null || echo " read-only"'
    )
    table = f"""
[docker]
image = "{image}"
[agents.keeper]
command = ["sh", "-c", {json.dumps(read)}]
secret_file = {{ KEY = "{key}" }}
[[agents.keeper.mounts]]
source = "{shared}"
target = "/srv/shared"
"""
    daemon = make_daemon(table, runtime="docker")
    daemon.start()
    message_id = daemon.post("what is the key?", agent="keeper", session="s")
    missing = eventually("a failed start", lambda: daemon.events("spawn_failed"))[0]
    assert (missing["code"], value in str(missing)) == ("SECRET_FILE", False)
    found = daemon.cli("doctor").envelope["result"]["diagnoses"]
    assert [one["code"] for one in found if str(key) in str(one["evidence"])] == ["SPAWN_FAILING"]
    key.write_text(value, encoding="utf-8")
    key.chmod(0o444)
    answer = daemon.answer(message_id, agent="keeper", session="s")["text"]
    assert answer == f"{value.upper()}from the host read-only", "it heals by itself"
    assert daemon.message("keeper", "s", message_id)["tries"] == 0
    backup = daemon.root / "backup"
    assert daemon.cli("backup", str(backup)).ok
    reports = [daemon.cli(*words).envelope for words in (("status",), ("session", "show", "keeper", "s"), ("doctor",))]
    seen = json.dumps(inspect(daemon.container("keeper", "s")["container_id"])) + json.dumps(reports)
    assert value not in seen
    assert "/run/secrets/KEY" in seen
    for folder in (daemon.data, backup):
        assert not [path for path in folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]


def test_a_restart_of_the_daemon_leaves_its_containers(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="quiet")
    message_id = in_mid_turn(daemon, "busy")
    before = {name: daemon.container("prog", name) for name in ("quiet", "busy")}
    daemon.stop()
    daemon.start()
    assert {name: daemon.container("prog", name) for name in before} == before
    daemon.kill()
    finish(daemon, "busy")
    daemon.start()
    assert daemon.answer(message_id, agent="prog", session="busy") == {"text": "done"}
    assert daemon.ask("say on", agent="prog", session="quiet") == {"text": "on"}
    assert {name: daemon.container("prog", name) for name in before} == before
    assert daemon.message("prog", "busy", message_id)["tries"] == 0


def test_a_container_killed_in_mid_turn_costs_a_try_and_the_message_is_answered(daemon: RealDaemon) -> None:
    message_id = in_mid_turn(daemon, "s")
    first = daemon.container("prog", "s")
    docker("kill", first["container_id"])
    finish(daemon, "s")
    assert daemon.answer(message_id, agent="prog", session="s") == {"text": "done"}
    second = daemon.container("prog", "s")
    assert second["container_id"] != first["container_id"]
    assert daemon.message("prog", "s", message_id)["tries"] == 1
    ended = next(one for one in daemon.show("prog", "s")["incarnations"] if one["id"] == first["incarnation"])
    assert (ended["exit_code"], ended["end_reason"]) == (137, "crashed")
    assert not exists(first["container_id"]), "removed once its exit was settled"


def test_an_acp_agent_killed_in_mid_turn_continues_its_session(daemon: RealDaemon) -> None:
    daemon.ask("say hello", agent="acp", session="s")
    message_id = daemon.post("tool build go", agent="acp", session="s")
    eventually("in mid-turn", (daemon.data / "agents" / "acp" / "go.began").exists, 90)
    eventually("its tool is shown", lambda: (daemon.show("acp", "s")["tool"] or {}).get("name") == "build", 90)
    first = daemon.container("acp", "s")
    docker("kill", first["container_id"])
    (daemon.data / "agents" / "acp" / "go").touch()
    assert daemon.answer(message_id, agent="acp", session="s") == {"text": "before\n\nafter"}
    told = json.loads(str(daemon.ask("memory", agent="acp", session="s")["text"]))
    assert told[:2] == ["say hello", "tool build go"]
    assert told[2].startswith("[This is try 2 of this message")
    assert daemon.container("acp", "s")["container_id"] != first["container_id"]


def test_a_cancelled_turn_stops_and_its_container_and_memory_stay(daemon: RealDaemon) -> None:
    turns = {"prog": "hang /workspace/agent/cancelled", "acp": "hang cancelled"}
    for agent, words in turns.items():
        daemon.ask("say hello", agent=agent, session="c")
        message_id = daemon.post(words, agent=agent, session="c")
        eventually("in mid-turn", (daemon.data / "agents" / agent / "cancelled").exists, 90)
        before = daemon.container(agent, "c")
        assert daemon.cli("message", "cancel", message_id, "--session", f"{agent}/c").result["running"]
        assert daemon.ask("say up", agent=agent, session="c")["text"] == "up", (
            "the turn was stopped: the next one is worked on"
        )
        assert daemon.container(agent, "c") == before, f"{agent}: its container was spared"
        assert daemon.message(agent, "c", message_id)["status"] == "cancelled"
        told = [one["content"] for one in daemon.entries() if one["in_reply_to"] == message_id]
        assert [one["error"]["code"] for one in told] == ["CANCELLED"], "nothing of the turn was sent"
    memory = json.loads(str(daemon.ask("memory", agent="acp", session="c")["text"]))
    assert memory == ["say hello", "hang cancelled", "<cancelled>", "say up"], "one process, which was asked to stop"


def test_the_output_of_a_removed_container_is_kept(daemon: RealDaemon) -> None:
    daemon.ask("exit 3", agent="prog", session="s")
    live = daemon.container("prog", "s")
    daemon.cli("session", "stop", "prog", "s")
    eventually("stopped", lambda: daemon.running("prog", "s") is None)
    assert not exists(live["container_id"])
    kept = (daemon.folder("prog", "s") / "logs" / "container.log").read_text(encoding="utf-8")
    assert live["incarnation"] in kept
    assert "it is over" in kept, "what the program said on its standard error"
    ended = daemon.show("prog", "s")["incarnations"][0]
    assert (ended["exit_code"], ended["end_reason"]) == (0, "operator_stop")


def test_a_message_that_reaches_the_memory_limit_takes_no_other_of_its_turn_with_it(daemon: RealDaemon) -> None:
    place = daemon.data / "agents" / "small"
    daemon.post("hang /workspace/agent/busy", agent="small", session="s")
    eventually("in mid-turn", (place / "busy").exists, 90)
    innocent = [daemon.post(f"say {number}", agent="small", session="s") for number in range(3)]
    greedy = daemon.post("eat 200", agent="small", session="s")
    (place / "busy.go").touch()
    for number, message_id in enumerate(innocent):
        assert daemon.answer(message_id, agent="small", session="s") == {"text": str(number)}
    eventually("given up", lambda: daemon.message("small", "s", greedy)["status"] == "failed", 60)
    assert [daemon.message("small", "s", one)["status"] for one in innocent] == ["completed"] * 3
    assert [one["id"] for one in daemon.cli("dead", "list").result["letters"]] == [greedy]


def test_a_program_that_eats_its_memory_is_explained(daemon: RealDaemon) -> None:
    said = daemon.cli("send", "eat 200", "--agent", "small", "--session", "s", "--wait", "60")
    assert said.error == "AGENT_FAILED"
    assert "SIGKILL" in said.envelope["error"]["message"]
    assert "memory" in said.envelope["error"]["message"]
    assert daemon.ask("say on", agent="small", session="s") == {"text": "on"}


def test_containers_of_others_are_left_alone(daemon: RealDaemon, base_image: str) -> None:
    daemon.ask("say up", agent="prog", session="s")
    name = f"clawbus-test-other-{os.getpid()}"
    labels = ("clawbus.install=another", "clawbus.agent=prog", "clawbus.session=s", "clawbus.incarnation=x",
              "clawbus.fingerprint=y")  # fmt: skip
    docker(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        name,
        *(f"--label={one}" for one in labels),
        base_image,
        "sleep",
        "120",
    )
    try:
        daemon.stop()
        daemon.start()
        daemon.cli("session", "kill", "prog", "s")
        assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}
        assert inspect(name)["State"]["Running"] is True
    finally:
        docker("rm", "-f", name)


@pytest.mark.parametrize("wrong", ["missing", "foreign", "stale"])
def test_a_wrong_image_is_refused_with_its_fix_and_the_message_waits(
    make_daemon: Make, image: str, base_image: str, wrong: str
) -> None:
    tag = f"clawbus-test-{wrong}:{os.getpid()}"
    if wrong == "foreign":
        docker("tag", base_image, tag)
    elif wrong == "stale":
        docker("build", "-t", tag, "-", stdin=f"FROM {image}\nLABEL clawbus.source-digest=old\n")
    daemon = make_daemon(agents(tag), runtime="docker")
    give_program(daemon)
    try:
        daemon.start()
        assert [one["what"] for one in daemon.status()["live"]["degraded"]] == ["image"]
        message_id = daemon.post("say kept", agent="prog", session="s")
        eventually("refused", lambda: daemon.events("spawn_failed"))
        event = daemon.events("spawn_failed")[0]
        assert event["code"] == "IMAGE_UNUSABLE"
        assert "clawbus image build" in event["hint"]
        explanation = daemon.cli("session", "show", "prog", "s").result["explanation"]
        assert {"missing": "is missing", "foreign": "is foreign", "stale": "built from other source (old)"}[
            wrong
        ] in explanation
        assert daemon.message("prog", "s", message_id)["tries"] == 0
    finally:
        subprocess.run(["docker", "rmi", tag], capture_output=True, check=False, timeout=120)
    try:
        docker("tag", image, tag)
        assert daemon.answer(message_id, agent="prog", session="s") == {"text": "kept"}
        eventually("no longer degraded", lambda: daemon.status()["live"]["degraded"] == [])
        assert daemon.message("prog", "s", message_id)["tries"] == 0
        # The start is recorded beside the work: an answer may be quicker.
        eventually("nothing to explain", lambda: daemon.show("prog", "s")["explanation"] is None)
    finally:
        docker("rmi", tag)


def test_docker_may_go_away_and_come_back(make_daemon: Make, image: str) -> None:
    daemon = make_daemon(agents(image), runtime="docker")
    proxy = SocketProxy(daemon.root / "docker.sock", Path("/var/run/docker.sock"))
    daemon.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
    give_program(daemon)
    proxy.open()
    try:
        daemon.start()
        message_id = in_mid_turn(daemon, "busy")
        before = daemon.container("prog", "busy")
        proxy.close()
        finish(daemon, "busy")
        assert daemon.answer(message_id, agent="prog", session="busy") == {"text": "done"}, "files need no Docker"
        waiting = daemon.post("say kept", agent="prog", session="waiting")
        eventually("noticed", lambda: daemon.status()["live"]["runtime"]["state"] == "unavailable")
        proxy.open()
        assert daemon.answer(waiting, agent="prog", session="waiting") == {"text": "kept"}
        assert daemon.container("prog", "busy") == before
        assert daemon.message("prog", "waiting", waiting)["tries"] == 0
        # A container may start before the daemon's next listing, which is what ends the finding.
        eventually("healed", lambda: daemon.status()["live"]["degraded"] == [])
    finally:
        daemon.end_daemons()
        proxy.close()


def test_every_container_is_ended_without_a_daemon_and_the_next_one_goes_on(make_daemon: Make, image: str) -> None:
    daemon = make_daemon(agents(image), runtime="docker")
    proxy = SocketProxy(daemon.root / "docker.sock", Path("/var/run/docker.sock"))
    daemon.environment["DOCKER_HOST"] = f"unix://{proxy.path}"
    give_program(daemon)
    proxy.open()
    try:
        daemon.start()
        message_id = in_mid_turn(daemon, "busy")
        daemon.ask("say up", agent="prog", session="idle")
        containers = [daemon.container("prog", session)["container_id"] for session in ("busy", "idle")]
        proxy.close()
        eventually("noticed", lambda: daemon.status()["live"]["runtime"]["state"] == "unavailable")
        assert daemon.cli("session", "kill", "--all").error == "RUNTIME_UNAVAILABLE", "with the daemon up"
        daemon.kill()
        assert daemon.cli("session", "kill", "--all").error == "RUNTIME_UNAVAILABLE", "and down"
        proxy.open()
        assert all(inspect(container)["State"]["Running"] for container in containers)
        assert daemon.cli("session", "kill", "--all").result["killed"] == 2
        assert not any(inspect(container)["State"]["Running"] for container in containers)
        daemon.start()
        finish(daemon, "busy")
        assert daemon.answer(message_id, agent="prog", session="busy") == {"text": "done"}
        assert daemon.message("prog", "busy", message_id)["tries"] == 1
    finally:
        daemon.end_daemons()
        proxy.close()


def test_sessions_of_the_process_runtime_go_on_in_containers(make_daemon: Make, image: str) -> None:
    """What the daemon's own user made must be writable for the containers' user."""
    daemon = make_daemon(agents(image))
    daemon.start()
    daemon.ask("before", agent="echo", session="s")
    daemon.stop()
    daemon.end_agents()
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace('kind = "process"', 'kind = "docker"'), encoding="utf-8")
    daemon.start()
    assert daemon.ask("after", agent="echo", session="s") == {"text": "after"}
    assert daemon.show("echo", "s")["incarnation"]["runtime"] == "docker"


def test_a_living_container_refuses_a_start_under_the_process_runtime(daemon: RealDaemon) -> None:
    """A process beside it would be the session's second container."""
    daemon.ask("say up", agent="prog", session="s")
    before = daemon.container("prog", "s")
    daemon.stop()
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace('kind = "docker"', 'kind = "process"'), encoding="utf-8")
    said = daemon.refused()
    assert said.error == "RUNTIME_CHANGED"
    assert "prog/s" in said.envelope["error"]["message"]
    daemon.config.write_text(text, encoding="utf-8")
    daemon.start()
    assert daemon.container("prog", "s")["container_id"] == before["container_id"]
    daemon.stop()
    daemon.config.write_text(text.replace('kind = "docker"', 'kind = "process"'), encoding="utf-8")
    assert "`clawbus session kill --all`" in daemon.refused().envelope["fix"]
    assert daemon.cli("session", "kill", "--all").result["killed"] == 1
    daemon.start()


def test_a_changed_agent_gets_a_new_container_after_a_restart(daemon: RealDaemon) -> None:
    daemon.ask("say up", agent="prog", session="s")
    before = daemon.container("prog", "s")
    text = daemon.config.read_text(encoding="utf-8")
    daemon.config.write_text(text.replace("[docker]\n", "[docker]\npids = 99\n"), encoding="utf-8")
    daemon.stop()
    daemon.start()
    assert daemon.ask("say on", agent="prog", session="s") == {"text": "on"}
    after = daemon.container("prog", "s")
    assert after["container_id"] != before["container_id"]
    assert inspect(after["container_id"])["HostConfig"]["PidsLimit"] == 99


@pytest.mark.parametrize("name", ["-1001234567890", "owner/repo#12", "K\u00fcche \u5bb6"])
def test_a_container_of_a_session_that_is_named_as_a_chat_is(daemon: RealDaemon, name: str) -> None:
    said = daemon.cli("send", "say hello", "--agent", "prog", f"--session={name}", "--wait", "60")
    assert said.result["answer"]["text"] == "hello"
    found = inspect(daemon.container("prog", name)["container_id"])
    assert found["Config"]["Labels"]["clawbus.session"] == name
    assert daemon.cli("session", "kill", f"prog/{name}").result["killed"] is True


def test_a_container_without_a_network_asks_a_model_and_no_place_but_its_file_has_the_key(
    make_daemon: Make, image: str
) -> None:
    with egress_story.model() as server:
        daemon = make_daemon(f'[docker]\nimage = "{image}"\n', runtime="docker")
        key = daemon.root / "model.key"
        daemon.configure(daemon.config.read_text().partition("\n")[2] + egress_story.tables(server, key, "python3"))
        egress_story.tell(daemon, server, key)
        container = daemon.container("asks", "s")["container_id"]
        found = inspect(container)
        assert found["HostConfig"]["NetworkMode"] == "none"
        assert not found["NetworkSettings"]["Ports"]
        assert {"/run/clawbus": False}.items() <= {one["Destination"]: one["RW"] for one in found["Mounts"]}.items()
        assert egress_story.leaks(daemon, key) == []
        assert egress_story.SECRET not in json.dumps(found) + docker("logs", container)


# Answers with every text that its turn was given; `wait NAME` first waits for NAME.go in its own folder.
_HEARD = """
import json, pathlib, sys, time
texts = [one["content"]["body"]["text"] for one in json.load(sys.stdin)["messages"]]
if texts[-1].startswith("wait "):
    mark = pathlib.Path("/workspace/agent") / texts[-1][5:]
    mark.touch()
    while not mark.with_suffix(".go").exists():
        time.sleep(0.02)
print(json.dumps(texts))
"""
_TEAM = """
[channels.webhook]
listen = "127.0.0.1:{port}"

[channels.webhook.hooks.team]
thread = "{{body.thread}}"
sender = "{{body.by}}"
text = "{{body.text}}"
secret = "inbound-secret"
reply_url = "{url}"
reply_secret = "outbound-secret"

[[routes]]
name = "team"
channel = "webhook"
place = "team"
agent = "team"
session = "per-thread"
unknown = "ask"
"""


def test_each_person_of_a_place_sees_what_he_may(make_daemon: Make, image: str) -> None:
    """Two people in two threads, a stranger, and one who is revoked in mid-turn, over a webhook in and out."""
    with receiving() as receiver:
        port = free_port()
        program = command_agent("team", ("python3", "-I", "-S", "-c", _HEARD))
        daemon = make_daemon(
            f'[docker]\nimage = "{image}"\n' + program + _TEAM.format(port=port, url=receiver.url), runtime="docker"
        )
        daemon.start()
        for name in ("ann", "bob", "dan"):
            assert daemon.cli("user", "add", name).ok
            assert daemon.cli("user", "bind", name, "webhook", f"{name}-id").ok
            assert daemon.cli("user", "role", name, "member", "--agent", "team").ok

        def say(by: str, thread: str, text: str, key: str) -> dict[str, object]:
            body = {"by": by, "thread": thread, "text": text}
            done = post(f"http://127.0.0.1:{port}/hooks/team", "inbound-secret", body, message_id=key)
            assert done.status_code == 202, done.text
            return done.json()

        def answers() -> dict[str, list[list[str]]]:
            """What the receiver got, by session."""
            found: dict[str, list[list[str]]] = {}
            for one in receiver.posts:
                found.setdefault(one.json["session"], []).append(json.loads(one.json["content"]["text"]))
            return found

        def heard(*texts: str) -> str:
            """The session whose agent answered exactly these turns, one text each, in this order."""
            wanted = [[text] for text in texts]
            return eventually(
                str(texts), lambda: next((name for name, got in answers().items() if got == wanted), None)
            )

        # Two people in two threads: two sessions, and neither's container has the other's words.
        say("ann-id", "t1", "ann's plan", "e1")
        say("bob-id", "t2", "bob's plan", "e2")
        first, second = heard("ann's plan"), heard("bob's plan")
        assert first != second
        for mine, others in ((first, b"bob's plan"), (second, b"ann's plan")):
            for file in daemon.folder("team", mine).rglob("*"):
                assert not file.is_file() or others not in file.read_bytes(), file

        # A stranger reaches nobody, not even as context, until somebody lets him in; an id like ann's is not ann's.
        ids = {
            "eve-id": "APPROVAL_PENDING",
            "Ann-id": "APPROVAL_PENDING",
            "ann-id ": "BAD_NAME",
            "ann\u200b-id": "BAD_NAME",
        }
        for number, (stranger, reason) in enumerate(ids.items()):
            assert reason in json.dumps(say(stranger, "t1", f"of {stranger}", f"e3-{number}"))
        waiting = daemon.cli("pairing", "list").result["pairings"]
        assert {one["sender"] for one in waiting} == {"eve-id", "Ann-id"}
        say("ann-id", "t1", "go on", "e3")
        assert heard("ann's plan", "go on") == first

        # One is revoked while the agent works for him: that turn ends as it began, and nothing more of his gets in.
        say("dan-id", "t3", "wait mark", "e4")
        mark = daemon.data / "agents" / "team" / "mark"
        eventually("in mid-turn", mark.exists)
        assert daemon.cli("user", "revoke", "dan", "--reason", "left").ok
        for key, text in (("e5", "me again"), ("e6", "/stop")):
            assert "SENDER_REVOKED" in json.dumps(say("dan-id", "t3", text, key))
        mark.with_suffix(".go").touch()
        third = heard("wait mark")

        # The stranger is let in, in groups and with this agent; the message that was refused is not delivered late.
        code = next(one["code"] for one in waiting if one["sender"] == "eve-id")
        assert daemon.cli("pairing", "approve", code).ok
        say("eve-id", "t4", "hello", "e7")
        heard("hello")
        assert len(answers()) == 4
        assert answers()[third] == [["wait mark"]]
        assert daemon.cli("dead", "list").result["letters"] == []
