"""Labels of containers that somebody else may have made: an invalid agent or session name is rejected."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.runtimes.docker_spawn import running_of
from daemon.runtimes.spec import LABEL_AGENT, LABEL_FINGERPRINT, LABEL_INCARNATION, LABEL_SESSION


def details(**labels: str) -> dict[str, Any]:
    found = {LABEL_AGENT: "helper", LABEL_SESSION: "!room:server", LABEL_INCARNATION: "i", LABEL_FINGERPRINT: "f"}
    return {
        "Id": "c1",
        "Config": {"Labels": found | {f"clawbus.{name}": value for name, value in labels.items()}},
        "State": {"StartedAt": "2026-11-21T00:00:00.123456789Z", "Paused": False},
        "HostConfig": {"RestartPolicy": {"Name": "no"}},
    }


def test_a_container_with_all_labels_is_known() -> None:
    found = running_of(details())
    assert found is not None
    assert (found.agent, found.session, found.paused, found.restarts) == ("helper", "!room:server", False, False)


@pytest.mark.parametrize(
    "labels",
    [{"agent": "../../elsewhere"}, {"agent": ""}, {"agent": "a" * 65}, {"session": "a/../b"}, {"session": "\n"}, {"session": ""}],
)  # fmt: skip
def test_an_invalid_name_in_a_label_is_rejected(labels: dict[str, str]) -> None:
    assert running_of(details(**labels)) is None
