"""The image of deploy/kubernetes under its pod's restrictions: it starts, takes messages, stops on SIGTERM, and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from tests.support.daemon import eventually
from tests.support.docker_bus import docker
from tests.support.webhooks import post

pytestmark = pytest.mark.docker

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SECRET: Final = "a key of this test alone"
MESSAGES: Final = 12


@pytest.fixture(scope="module")
def image(base_image: str) -> Iterator[str]:
    """Built as the runbook says."""
    tag = f"clawbus-test-pod:{os.getpid()}"
    command = [sys.executable, str(FOLDER / "build_image.py"), "--base", base_image, "--tag", tag]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    yield tag
    subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False, timeout=120)


class Pod:
    """A container with what the manifests give the pod's. Its volumes are folders with the owner and mode of an fsGroup's."""

    def __init__(self, image: str, root: Path) -> None:
        documents = list(yaml.safe_load_all((FOLDER / "clawbus.yaml").read_text(encoding="utf-8")))
        kinds: dict[str, Any] = {one["kind"]: one for one in documents}
        spec = kinds["StatefulSet"]["spec"]["template"]["spec"]
        (self._container,) = spec["containers"]
        user = spec["securityContext"]["runAsUser"]
        self._name, self._image, self._user = f"clawbus-test-pod-{os.getpid()}", image, f"{user}:{user}"
        self._sources = {name: root / name for name in ("data", "config", "hooks")}
        for path in self._sources.values():
            path.mkdir()
        os.chown(self._sources["data"], 0, user)
        self._sources["data"].chmod(0o2775)
        (self._sources["config"] / "clawbus.toml").write_text(
            kinds["ConfigMap"]["data"]["clawbus.toml"], encoding="utf-8"
        )
        # A secret's volume: links into a folder that is replaced as a whole.
        kept = self._sources["hooks"] / "..2026"
        kept.mkdir(mode=0o755)
        (kept / "inbox").write_text(SECRET, encoding="utf-8")
        (kept / "inbox").chmod(0o440)
        os.chown(kept / "inbox", 0, user)
        (self._sources["hooks"] / "..data").symlink_to("..2026")
        (self._sources["hooks"] / "inbox").symlink_to("..data/inbox")

    def create(self) -> None:
        mounts: list[str] = []
        for mount in self._container["volumeMounts"]:
            if mount["name"] == "tmp":
                mounts += ["--tmpfs", f"{mount['mountPath']}:mode=1777"]
                continue
            source = self._sources[mount["name"]] / mount.get("subPath", "")
            mounts += ["--volume", f"{source}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"]
        ports = [f"--publish=127.0.0.1::{port['containerPort']}" for port in self._container["ports"]]
        docker(
            *("create", "--name", self._name, "--init", "--read-only", "--cap-drop", "ALL", "--user", self._user),
            *("--security-opt", "no-new-privileges", *mounts, *ports, self._image, *self._container["args"]),
        )

    def start(self) -> None:
        """Start it, and return when the startup probe would be content."""
        docker("start", self._name)
        probe = self._container["startupProbe"]["httpGet"]
        eventually("ready", lambda: self.get(probe["port"], probe["path"]) == 200)

    def get(self, port: str, path: str) -> int | None:
        try:
            return httpx.get(f"{self.url(port)}{path}", timeout=5, trust_env=False).status_code
        except httpx.HTTPError:
            return None

    def url(self, port: str) -> str:
        (number,) = [one["containerPort"] for one in self._container["ports"] if one["name"] == port]
        return f"http://{docker('port', self._name, str(number)).splitlines()[0]}"

    def stop(self) -> int:
        """SIGTERM as kubelet sends it; its exit code."""
        docker("stop", "--time", "60", self._name)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self._name))

    def clawbus(self, *arguments: str) -> Any:
        return json.loads(docker("exec", self._name, "clawbus", *arguments, "--json"))["result"]

    def states(self, ids: list[str]) -> list[str]:
        """How each message of the list stands."""
        found = {one["id"]: one["status"] for one in self.clawbus("message", "list", "--limit", "50")["messages"]}
        return [found[one] for one in ids]

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "-f", "-v", self._name], capture_output=True, check=False, timeout=120)


@pytest.fixture
def pod(image: str, tmp_path: Path) -> Iterator[Pod]:
    tmp_path.chmod(0o755)
    made = Pod(image, tmp_path)
    try:
        made.create()
        yield made
    finally:
        made.remove()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to the pod's group")
def test_a_pod_that_is_replaced_under_load_loses_nothing(pod: Pod) -> None:
    pod.start()
    assert pod.get("metrics", "/healthz") == 200
    assert (
        pod.clawbus("send", "hello", "--agent", "echo", "--session", "s", "--wait", "60")["answer"]["text"] == "hello"
    )

    ids = [f"m{number}" for number in range(MESSAGES)]
    hook = f"{pod.url('webhook')}/hooks/inbox/s"
    codes = [post(hook, SECRET, {"text": one}, message_id=one).status_code for one in ids]
    assert codes == [202] * MESSAGES
    assert pod.stop() == 0, "the daemon ends in order, its agents with the container"

    pod.start()
    hook = f"{pod.url('webhook')}/hooks/inbox/s"
    assert post(hook, SECRET, {"text": "m0"}, message_id="m0").json()["duplicate"], "what was accepted is on the volume"
    eventually("all is worked on", lambda: pod.states(ids) == ["completed"] * MESSAGES, 60)
    assert pod.stop() == 0
