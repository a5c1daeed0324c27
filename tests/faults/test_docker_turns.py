"""The end of turns in real containers: frozen past their time-out, full of leftovers, replaced after a restart."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.agent_image import agent_image
from tests.support.agents import command_agent
from tests.support.daemon import RealDaemon, eventually

pytestmark = [pytest.mark.faults, pytest.mark.docker]

Make = Callable[..., RealDaemon]


def patient(timeout_s: float = 60.0) -> str:
    """Notes that it began, waits for its folder's word, and answers."""
    script = "read -r turn; echo x >> begun; until [ -e go ]; do sleep 0.1; done; echo done"
    return command_agent("patient", ("/bin/sh", "-c", script), timeout_s)


# Each turn leaves a process in a session of its own, as a dev server or a browser does.
LEAVES = ("python3", "-c", "import subprocess; subprocess.Popen(['sleep', '999'], start_new_session=True); print('ok')")


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    with agent_image(base_image) as tag:
        yield tag


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True, timeout=120)


def in_mid_turn(daemon: RealDaemon) -> str:
    message_id = daemon.post("work", agent="patient", session="s")
    eventually("in mid-turn", (daemon.data / "agents" / "patient" / "begun").exists, 60)
    return message_id


def begun(daemon: RealDaemon) -> int:
    return len((daemon.data / "agents" / "patient" / "begun").read_text().splitlines())


def test_a_frozen_container_s_message_goes_to_the_next_although_its_time_is_over(make_daemon: Make, image: str) -> None:
    tables = f'{patient(timeout_s=4.0)}\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker", sweep_keys="claim_stuck_s = 1.0")
    daemon.start()
    message_id = in_mid_turn(daemon)
    frozen = daemon.container("patient", "s")
    docker("pause", frozen["container_id"])
    eventually("found out", lambda: daemon.events("container_stuck"), 60)
    eventually("ended", lambda: frozen["incarnation"] not in [one["id"] for one in daemon.status()["incarnations"]], 60)
    eventually("begun again", lambda: begun(daemon) > 1, 60)
    (daemon.data / "agents" / "patient" / "go").touch()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    eventually("settled", lambda: daemon.message("patient", "s", message_id)["status"] == "completed")
    assert daemon.events("message_failed") == []
    daemon.at_rest = True


def test_what_turns_leave_running_does_not_use_up_their_container(make_daemon: Make, image: str) -> None:
    tables = f'{command_agent("leaves", LEAVES)}pids = 24\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker")
    daemon.start()
    for number in range(30):
        assert daemon.ask(f"turn {number}", agent="leaves", session="s", wait_s=60) == {"text": "ok"}
    assert len(daemon.events("container_spawned")) == 1
    daemon.at_rest = True


def test_a_container_that_is_used_up_is_replaced_and_every_message_is_answered(make_daemon: Make, image: str) -> None:
    # It takes all the room there is, and leaves one that takes its own place too: then the runner's next fork fails.
    fill = "import subprocess, sys\nwhile True: subprocess.Popen(['sleep', '999'], start_new_session=True)\n"
    keeper = f"import time\nwhile True:\n  try: exec({fill!r})\n  except OSError: time.sleep(0.001)\n"
    script = (
        "import subprocess\n"
        "try:\n"
        f"    subprocess.Popen(['python3', '-c', {keeper!r}], start_new_session=True, stdout=subprocess.DEVNULL)\n"
        f"    exec({fill!r})\n"
        "except OSError: print('ok')\n"
    )
    tables = f'{command_agent("greedy", ("python3", "-c", script))}pids = 24\nleftovers = "keep"\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker")
    daemon.start()
    exits: list[int] = []
    # A turn may begin before the place of the one before is taken: then it still finds room.
    for number in range(50):
        assert daemon.ask(f"turn {number}", agent="greedy", session="s", wait_s=60) == {"text": "ok"}
        exits = [event["exit_code"] for event in daemon.events("container_exited")]
        if len(exits) >= 2:
            break
    assert len(exits) >= 2
    assert set(exits) == {71}
    assert {one["tries"] for one in daemon.show("greedy", "s")["messages"]} == {0}
    daemon.at_rest = True


def test_a_container_whose_tmp_is_full_is_replaced_before_the_next_turn_fails_for_it(
    make_daemon: Make, image: str
) -> None:
    script = (
        "import pathlib, tempfile\n"
        "name = tempfile.mkstemp()[1]\n"
        "try:\n"
        "    with open(name, 'wb') as file:\n"
        "        for _ in range(20): file.write(b'x' * 1024**2)\n"
        "    print('ok')\n"
        "except OSError as error: raise SystemExit(str(error))\n"
    )
    # /tmp has half of the memory: room for one turn and a half.
    tables = f'{command_agent("litters", ("python3", "-c", script))}memory_bytes = {64 * 1024**2}\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker")
    daemon.start()
    answers = [daemon.ask(f"turn {number}", agent="litters", session="s", wait_s=60) for number in range(4)]
    worked = [answer == {"text": "ok"} for answer in answers]
    assert worked == [True, False, True, False], "a full /tmp fails the turn that met it, and none after it"
    assert len(daemon.events("container_spawned")) == 2
    daemon.at_rest = True


def test_a_restart_with_a_changed_agent_waits_for_the_turn_and_repeats_nothing(make_daemon: Make, image: str) -> None:
    tables = f'{patient()}\n[docker]\nimage = "{image}"\n'
    daemon = make_daemon(tables, runtime="docker")
    daemon.start()
    message_id = in_mid_turn(daemon)
    old = daemon.container("patient", "s")
    daemon.stop()
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("[docker]", "[agents.patient.env]\nNEW = '1'\n[docker]"))
    daemon.start()
    eventually("draining", lambda: daemon.events("container_draining"), 30)
    following = daemon.post("and this", agent="patient", session="s")
    (daemon.data / "agents" / "patient" / "go").touch()
    assert daemon.answer(message_id, agent="patient", session="s", wait_s=60) == {"text": "done"}
    assert daemon.answer(following, agent="patient", session="s", wait_s=60) == {"text": "done"}
    assert begun(daemon) == 2, "one turn for each message"
    assert daemon.container("patient", "s")["incarnation"] != old["incarnation"]
    daemon.at_rest = True
