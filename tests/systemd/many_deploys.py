"""Many deploys in a row under load, forward and back, in a real systemd: what is lost, doubled or ended, and how long senders wait.

    .venv/bin/python -m tests.systemd.many_deploys --deploys 50

Twenty sessions: twelve over the control socket, six over a webhook, two whose turns take twenty seconds. It needs Docker and
the image of a Debian with systemd (CLAWBUS_TEST_SYSTEMD_IMAGE). Exit code 1 when anything was lost, doubled or ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from tests.support.deploy_load import SECRET
from tests.support.systemd_host import SystemdHost, build_site

PORT: Final = 8650
_LOAD: Final = Path(__file__).parents[1] / "support" / "deploy_load.py"
_TABLES: Final = f"""
[agents.slow]
provider = "command"
command = ["/bin/sh", "-c", "sleep 20; cat"]
timeout_s = 120

[channels.webhook]
listen = "127.0.0.1:{PORT}"

[channels.webhook.hooks.load]
agent = "echo"
session = "*"
secret = "{SECRET}"
reply_url = "http://127.0.0.1:8651/"
reply_secret = "another {SECRET}"

[deploy]
root = "/opt/clawbus"
warm_s = 1.0
bake_s = 2.0
bake_check_s = 0.2
cooldown_s = 0.0
"""
_AS_CLAWBUS: Final = ("setpriv", "--reuid", "clawbus", "--regid", "clawbus", "--init-groups", "--")


def main() -> int:
    """Deploy to and fro, print the account, and return the exit code."""
    parser = argparse.ArgumentParser(description="deploys in a row under load, in a real systemd")
    parser.add_argument("--deploys", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no deploy after this time")
    options = parser.parse_args()
    image = os.environ.get("CLAWBUS_TEST_SYSTEMD_IMAGE", "base-systemd:bookworm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clawbus" / "wheels"
    with tempfile.TemporaryDirectory(prefix="cb", ignore_cleanup_errors=True) as folder:
        site = Path(folder) / "site"
        build_site(site, cache)
        for path in (site.parent, site, *site.rglob("*")):
            path.chmod(path.stat().st_mode | 0o055)
        machine = SystemdHost(image, site)
        try:
            machine.install()
            releases = prepare(machine)
            deploys, report = under_load(machine, releases, options.deploys, time.monotonic() + options.minutes * 60)
        finally:
            machine.close()
    return account(deploys, report, options.deploys)


def prepare(machine: SystemdHost) -> list[str]:
    """Two releases, both slots from the first one, blue serving. Return the releases in the order of their deploys."""
    must(machine, "sh", "-c", f"cat >> /etc/clawbus/clawbus.toml <<'END'\n{_TABLES}END")
    must(machine, "sed", "-i", "s/max_containers = .*/max_containers = 30/", "/etc/clawbus/clawbus.toml")
    must(machine, "clawbus", "config", "check")
    machine.make_two_releases()
    second, first = [one["id"] for one in machine.clawbus("release", "list")["releases"]]
    for slot in ("blue", "green"):
        must(machine, "clawbus", "release", "link", slot, first)
    for slot in ("blue", "green"):
        machine.systemctl("start", f"clawbus@{slot}")
    return [second, first]


def under_load(
    machine: SystemdHost, releases: list[str], count: int, until: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Deploy while the load runs. Return the deploys as the bus recorded them, and the load's account."""
    must(machine, "install", "-d", "-o", "clawbus", "/opt/load")
    subprocess.run(["docker", "cp", str(_LOAD), f"{machine.container}:/opt/load/"], check=True, capture_output=True)
    command = ("/opt/clawbus/bin/python", "/opt/load/deploy_load.py", "/var/lib/clawbus", str(PORT), "/opt/load/report")
    load = subprocess.Popen(["docker", "exec", machine.container, *_AS_CLAWBUS, *command])
    deploys: list[dict[str, Any]] = []
    try:
        for number in range(count):
            if time.monotonic() > until or load.poll() is not None:
                break
            began = time.monotonic()
            done = machine.run("clawbus", "deploy", "start", releases[number % 2], "--json", timeout_s=180)
            said = json.loads(done.stdout)
            deploys.append(
                said["result"]["deploy"] if said["ok"] else {"state": "refused", "gates": [], "error": said["error"]}
            )
            print(
                f"deploy {number + 1} of {count}: {deploys[-1]['state']}, {time.monotonic() - began:.1f} s", flush=True
            )
    finally:
        machine.run("touch", "/opt/load/stop")
        load.wait(timeout=300)
    return deploys, json.loads(must(machine, "cat", "/opt/load/report"))


def account(deploys: list[dict[str, Any]], report: dict[str, Any], wanted: int) -> int:
    """Print what happened. Return 0 when nothing was lost, doubled or ended and every deploy passed."""
    passed = sum(one["state"] == "passed" for one in deploys)
    windows = [window for one in deploys if (window := cutover_window(one)) is not None]
    accepted = report["accepted"]
    during = [
        one
        for one in accepted
        if any(begin <= one["at"] + one["took_s"] and one["at"] <= end for begin, end in windows)
    ]
    rows = [
        ("deploys passed", f"{passed} of {wanted}"),
        *((f"accepted, {kind}", sum(one["kind"] == kind for one in accepted)) for kind in ("local", "hook", "long")),
        ("never accepted", len(report["given_up"])),
        ("lost", len(report["lost"])),
        ("doubled", len(report["doubled"])),
        ("sent again under the same key", len(report["sent_again"])),
        ("turns begun again or not completed", len(report["attempts"])),
        ("acceptance, all", pace(accepted)),
        ("acceptance, from drain to cutover", pace(during)),
    ]
    for name, value in rows:
        print(f"{name:<36} {value}")
    faults = [report[key] for key in ("given_up", "lost", "doubled", "attempts") if report[key]]
    for fault in [*faults, *(one for one in deploys if one["state"] != "passed")]:
        print(json.dumps(fault)[:2000])
    return 0 if not faults and passed == wanted and accepted else 1


def cutover_window(deploy: dict[str, Any]) -> tuple[float, float] | None:
    """Return from when to when (epoch seconds) the work changed hands; None if it did not."""
    gates = {one["name"]: one for one in deploy["gates"]}
    if not gates or gates["drain"]["since"] is None or gates["cutover"]["ended"] is None:
        return None
    return gates["drain"]["since"] / 1000, gates["cutover"]["ended"] / 1000


def pace(accepted: list[dict[str, Any]]) -> str:
    """Return median, 99th percentile and longest time to the yes."""
    took = sorted(one["took_s"] for one in accepted)
    if len(took) < 2:
        return f"{len(took)} messages"
    return f"p50 {median(took):.3f} s, p99 {quantiles(took, n=100, method='inclusive')[98]:.3f} s, longest {took[-1]:.3f} s, {len(took)} messages"


def must(machine: SystemdHost, *command: str) -> str:
    """Run a command in the machine; it must succeed. Return its output."""
    done = machine.run(*command)
    assert done.returncode == 0, (command, done.stdout, done.stderr, machine.journal_text())
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
