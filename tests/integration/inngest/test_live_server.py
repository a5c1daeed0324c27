"""The real commands beside a server that writes without a busy time-out, as released ones do: it loses no commit by them."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.impatient_writer import begin, impatient_writer, outcome, prepare
from tests.support.inngest_real import unpack

CLAWBUS = Path(sys.executable).with_name("clawbus")
LOOKS = (
    ("runs",), ("runs", "--status", "stale", "--queue-lost"), ("sweep-stale",), ("sweep-stale", "--queue-lost"),
    ("run", "01M8FMFAP79C60EXMTBGXKTR7W"), ("sweep-stale", "--functions", "check/quick,check/queued", "--apply"), ("runs", "-n", "3"),
    ("sweep-stale", "--functions", "check/quick,check/queued", "--apply", "--while-running"),
)  # fmt: skip


def look(path: Path, words: tuple[str, ...]) -> str | None:
    done = subprocess.run(
        [CLAWBUS, "inngest", *words, "--db", str(path), "--json"], capture_output=True, check=False, cwd=path.parent
    )
    error = json.loads(done.stdout).get("error")
    return error["code"] if error else None


def test_eight_real_commands_fail_none_of_a_server_s_commits(tmp_path: Path) -> None:
    path = unpack("A2-before-sweep", tmp_path)
    prepare(path)
    with impatient_writer(path, 0, pause_every=1) as server, ThreadPoolExecutor(len(LOOKS)) as pool:
        begin(server)
        codes = list(pool.map(lambda words: look(path, words), LOOKS))
        result = outcome(server)
    assert result["failed"] == 0, result["errors"]
    assert result["made"] > 0
    assert codes == [None, None, None, None, None, "SWEEP_SERVER_RUNNING", None, "SWEEP_SERVER_WOULD_LOSE_WRITES"]
