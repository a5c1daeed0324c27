"""deploy/kubernetes is what the Kubernetes API accepts, and every path, port, probe and key in it is clawbus's own."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
import yaml

from daemon.channels.webhook_settings import WebhookSettings
from daemon.cli.catalogue import COMMANDS
from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.monitoring.http import telemetry_routes
from tests.support.kubernetes import faults

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
DOCUMENTS: Final[list[dict[str, Any]]] = list(yaml.safe_load_all((FOLDER / "clawbus.yaml").read_text(encoding="utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [one for one in DOCUMENTS if one["kind"] == kind]
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    return of_kind("StatefulSet")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "clawbus.toml"
    path.write_text(of_kind("ConfigMap")["data"]["clawbus.toml"], encoding="utf-8")
    return load_config(path)


def ports_of(container: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def port_of(listen: str) -> int:
    return int(listen.rpartition(":")[2])


@pytest.mark.parametrize("manifest", DOCUMENTS, ids=lambda one: cast("str", one["kind"]))
def test_the_api_accepts_each_manifest(manifest: dict[str, Any]) -> None:
    assert faults(manifest) == []
    if manifest["kind"] != "Namespace":
        assert manifest["metadata"]["namespace"] == of_kind("Namespace")["metadata"]["name"]


def _pod(one: dict[str, Any]) -> dict[str, Any]:
    return one["spec"]["template"]["spec"]


BROKEN: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "spec.replicas": lambda one: one["spec"].update(replicas="one"),
    "spec.selector: is required": lambda one: one["spec"].pop("selector"),
    "containers[0].livenesProbe: there is no such field": lambda one: _pod(one)["containers"][0].update(
        livenesProbe={}
    ),
    "ports[0].containerPort": lambda one: _pod(one)["containers"][0]["ports"][0].update(containerPort="8650"),
    "readOnlyRootFilesystem": lambda one: _pod(one)["containers"][0]["securityContext"].update(
        readOnlyRootFilesystem=1
    ),
    "httpGet.port": lambda one: _pod(one)["containers"][0]["livenessProbe"]["httpGet"].update(port=[]),
    "no such schema": lambda one: one.update(apiVersion="apps/v1beta1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_manifest_is_refused(fault: str) -> None:
    broken = copy.deepcopy(of_kind("StatefulSet"))
    BROKEN[fault](broken)
    assert [one for one in faults(broken) if fault in one], faults(broken)


def test_the_probes_ask_addresses_that_the_daemon_serves(container: dict[str, Any], config: Config) -> None:
    served = {cast("Any", route).path for route in telemetry_routes(cast("Any", None), cast("Any", None))}
    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz",
    }  # fmt: skip
    assert {probe["path"] for probe in asked.values()} <= served
    assert {ports_of(container)[probe["port"]] for probe in asked.values()} == {port_of(config.telemetry.listen)}


def test_the_ports_are_those_of_the_configuration(container: dict[str, Any], config: Config) -> None:
    ports = ports_of(container)
    webhook = WebhookSettings.model_validate(config.channels["webhook"])
    assert ports == {"webhook": port_of(webhook.listen), "metrics": port_of(config.telemetry.listen)}
    assert {port["targetPort"] for port in of_kind("Service")["spec"]["ports"]} <= ports.keys()
    allowed = {port["port"] for rule in of_kind("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == ports.keys()


def test_every_label_selects_the_pod() -> None:
    labels = of_kind("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("StatefulSet")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert of_kind("StatefulSet")["spec"]["serviceName"] == of_kind("Service")["metadata"]["name"]


def test_the_paths_of_the_configuration_are_mounted(
    pod: dict[str, Any], container: dict[str, Any], config: Config
) -> None:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    claimed = {one["metadata"]["name"] for one in of_kind("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in mounts.values()} == {one["name"] for one in pod["volumes"]} | claimed
    command, option, path = container["args"]
    assert (command, option) == ("serve", "--config")
    assert command in COMMANDS
    assert path in mounts
    assert mounts[path]["subPath"] in of_kind("ConfigMap")["data"]
    raw = tomllib.loads(of_kind("ConfigMap")["data"]["clawbus.toml"])
    assert mounts[str(Path(raw["data_dir"]).parent)]["name"] in claimed
    for hook in raw["channels"]["webhook"]["hooks"].values():
        folder = mounts[str(Path(hook["secret_file"]).parent)]
        (volume,) = [one for one in pod["volumes"] if one["name"] == folder["name"]]
        assert volume["secret"]["defaultMode"] == 0o440
        assert folder["readOnly"]
    assert config.runtime.kind == "process"


def test_the_pod_is_locked_down(pod: dict[str, Any], container: dict[str, Any]) -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in dockerfile
    assert user["runAsNonRoot"]
    assert user["fsGroup"] == user["runAsGroup"]
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not pod["automountServiceAccountToken"]
    assert of_kind("StatefulSet")["spec"]["replicas"] == 1
