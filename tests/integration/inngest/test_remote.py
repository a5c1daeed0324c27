"""The same program through a command: on a bare Python, with a stand-in for kubectl, and in a real container."""

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.inngest.errors import InngestExecError
from daemon.inngest.remote import BOOT, bundle, command_words, operate_there
from tests.support.inngest_db import HEALTH, HOUR, MINUTE, TRIAGE, InngestDb, the_night
from tests.support.inngest_server import open_elsewhere


def options(
    path: str, *, apply: bool, functions: tuple[str, ...] = (TRIAGE, HEALTH), exclude: tuple[str, ...] = ()
) -> dict[str, Any]:
    scope = {"functions": functions, "older_than_ms": 30 * MINUTE, "max_runs": 200, "sample": 25, "exclude": exclude}
    return {"path": path, "scope": scope, "by": "ada", "reason": "r", "apply": apply, "while_running": False}


def real_now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def python_there(tmp_path: Path) -> str:
    """A command that runs `python3` as another machine would: isolated, from a folder of its own."""
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "python3").write_text(f'#!/bin/sh\nexec "{Path(sys.base_prefix) / "bin" / "python3"}" -I -S "$@"\n')
    (folder / "python3").chmod(0o755)
    return f"env -i PATH={folder}"


def test_the_whole_sweep_runs_there_with_nothing_installed(tmp_path: Path, python_there: str) -> None:
    night = the_night(tmp_path / "main.db", now=real_now())
    path = str(night.db.path)
    answer = operate_there(python_there, "sweep", options(path, apply=True))
    assert answer["error"]["code"] == "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    answer = operate_there(python_there, "sweep", options(path, apply=True, exclude=(night.unregistered.key,)))
    assert answer["error"] is None
    assert answer["result"]["written"] == {"history": 6, "finishes": 7, "spans": 9, "statuses": 9}
    assert answer["result"]["verification"]["ok"]
    assert Path(answer["result"]["backup"]["path"]).parent == tmp_path, "beside the database, where it is"
    again = operate_there(python_there, "sweep", options(path, apply=True, exclude=(night.unregistered.key,)))
    assert (again["error"], again["result"]["candidates"]) == (None, [])


def test_a_refusal_there_has_the_same_code(tmp_path: Path, python_there: str) -> None:
    answer = operate_there(python_there, "run", {"path": str(tmp_path / "none.db"), "run_id": "0" * 26})
    assert answer["error"]["code"] == "INNGEST_DB_MISSING"


def test_the_bundle_is_what_the_operation_needs_and_no_more() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        names = set(archive.namelist())
    assert {
        "daemon/inngest/sweep.py",
        "daemon/maintenance/backup.py",
        "schema/connect.py",
        "schema/inbound.sql",
    } <= names
    assert not any(name.startswith(("daemon/cli", "daemon/engine", "daemon/app")) for name in names)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("kubectl -n ns exec pod --", "kubectl -n ns exec -i pod --"),
        ("/usr/bin/kubectl exec pod -c inngest --", "/usr/bin/kubectl exec -i pod -c inngest --"),
        ("kubectl exec -i pod --", "kubectl exec -i pod --"),
        ("kubectl exec --stdin pod --", "kubectl exec --stdin pod --"),
        ("docker exec box", "docker exec -i box"),
        ("docker exec -it box", "docker exec -it box"),
        ("ssh host", "ssh host"),
    ],
)
def test_standard_input_is_passed_on(command: str, words: str) -> None:
    assert command_words(command) == words.split()


def test_a_kubectl_that_gives_no_input_without_its_option_works(tmp_path: Path, python_there: str) -> None:
    """Stands in for the real one: without -i the far end reads nothing."""
    db = InngestDb(tmp_path / "main.db", now=real_now())
    db.run(TRIAGE)
    db.run(HEALTH)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\ncase " $* " in *" -i "*) ;; *) exec </dev/null ;; esac\n'
        f'while [ "$1" != "--" ]; do shift; done; shift\nexec {python_there} "$@"\n'
    )
    kubectl.chmod(0o755)
    answer = operate_there(f"{kubectl} -n ns exec pod --", "sweep", options(str(db.path), apply=False))
    assert len(answer["result"]["candidates"]) == 2
    renamed = kubectl.rename(tmp_path / "other")
    with pytest.raises(InngestExecError, match="standard input"):
        operate_there(f"{renamed} -n ns exec pod --", "sweep", options(str(db.path), apply=False))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "names no command"),
        ("'unclosed", "No closing quotation"),
        ("no-such-command-here", "No such file"),
        ("false", "no answer"),
        ("sh -c 'echo nothing useful; echo broken >&2; exit 3'", "broken"),
        ("sh -c 'cat >/dev/null; echo []'", "no answer"),
    ],
)
def test_a_command_that_does_not_answer_is_told(command: str, said: str) -> None:
    with pytest.raises(InngestExecError, match=said) as caught:
        operate_there(command, "run", {})
    assert caught.value.hint


def test_an_old_python_there_is_told(tmp_path: Path) -> None:
    """The boot code is what an old Python meets first; here it is run with another version's number."""
    faked = "import sys\nsys.version_info = (3, 9)\n" + BOOT
    done = subprocess.run([sys.executable, "-c", faked], input=b"", capture_output=True, check=True, cwd=tmp_path)
    assert "3.9; 3.11 is needed" in json.loads(done.stdout)["failed"]


@contextmanager
def running(image: str, *more: str) -> Generator[str]:
    """A container with Python and nothing of ours; its id."""
    words = [
        "docker",
        "run",
        "-d",
        "--rm",
        "--init",
        "--network",
        "none",
        "--label",
        "clawbus-test=inngest",
        *more,
        image,
    ]
    made = subprocess.run([*words, "sleep", "600"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield made
    finally:
        subprocess.run(["docker", "kill", made], capture_output=True, check=False)


@pytest.fixture
def container(base_image: str) -> Generator[str]:
    with running(base_image) as made:
        yield made


def put(file: Path, container: str) -> None:
    """Into the container's /data."""
    subprocess.run(["docker", "exec", container, "mkdir", "/data"], check=True)
    subprocess.run(["docker", "cp", "-q", str(file), f"{container}:/data/main.db"], check=True, capture_output=True)


@pytest.mark.docker
def test_a_database_is_swept_from_a_container_started_beside_it(
    tmp_path: Path, container: str, base_image: str
) -> None:
    """As with an ephemeral container: the same processes, the files under /proc/1/root. The server is seen."""
    night = the_night(tmp_path / "main.db", wal=True, now=real_now())
    put(night.db.path, container)
    hold = "import sqlite3, sys; db = sqlite3.connect('/data/main.db'); db.execute('SELECT 1 FROM history').fetchone();"
    hold += " print('open', flush=True); sys.stdin.read()"
    words = ["docker", "exec", "-i", container, "python3", "-c", hold]
    with (
        running(base_image, "--pid", f"container:{container}") as beside,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == b"open\n"
        asked = options("/proc/1/root/data/main.db", apply=True, exclude=(night.unregistered.key,))
        answer = operate_there(f"docker exec {beside}", "sweep", asked)
        assert answer["error"]["code"] == "SWEEP_SERVER_RUNNING"
        answer = operate_there(f"docker exec {beside}", "sweep", {**asked, "while_running": True})
        server.communicate(b"")
    assert answer["error"] is None
    assert answer["result"]["verification"]["ok"]
    assert answer["result"]["path"] == "/data/main.db"


@pytest.mark.docker
def test_a_database_inside_a_container_is_swept_where_it_is(tmp_path: Path, container: str) -> None:
    night = the_night(tmp_path / "main.db", wal=True, now=real_now())
    put(night.db.path, container)
    command = f"docker exec {container}"
    preview = operate_there(command, "sweep", options("/data/main.db", apply=False))
    assert {name: one["total"] for name, one in preview["result"]["by_function"].items()} == {TRIAGE: 7, HEALTH: 3}
    swept = operate_there(command, "sweep", options("/data/main.db", apply=True, exclude=(night.unregistered.key,)))
    assert swept["error"] is None
    assert swept["result"]["verification"]["ok"]
    there = subprocess.run(
        ["docker", "exec", container, "ls", "/data"], capture_output=True, text=True, check=True
    ).stdout
    assert "main.db.pre-sweep-" in there
    subprocess.run(
        ["docker", "cp", "-q", f"{container}:/data/main.db", str(tmp_path / "back.db")], check=True, capture_output=True
    )
    back = InngestDb.__new__(InngestDb)
    back.path = tmp_path / "back.db"
    assert len(back.span_list("Cancelled")) == 7


def test_a_server_there_is_seen_there(tmp_path: Path, python_there: str) -> None:
    db = InngestDb(tmp_path / "main.db", wal=True, now=real_now())
    db.run(TRIAGE, age=3 * HOUR)
    db.run(HEALTH)
    with open_elsewhere(db.path) as pid:
        answer = operate_there(python_there, "sweep", options(str(db.path), apply=True))
    assert answer["error"]["code"] == "SWEEP_SERVER_RUNNING"
    assert [one["pid"] for one in answer["result"]["server"]] == [pid]
