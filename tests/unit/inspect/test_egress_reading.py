"""What is said of a route's secret file that does not answer."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.config.models import Config
from daemon.core.host_repairs import READ_KERNEL_ERRORS
from daemon.inspect import egress_reading
from daemon.inspect.egress_reading import egress_report, secret_errors


def test_a_mount_that_hangs_is_named_and_hides_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, hung, absent = threading.Event(), tmp_path / "hung", tmp_path / "absent"
    hung.write_text("a-secret")
    real = os.open

    def opened(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path) == str(hung):
            answers.wait(10)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(egress_reading, "_LOOK_S", 0.2)
    routes = {
        path.name: {"upstream": "https://x.invalid", "agents": ["a"], "secret_file": str(path)}
        for path in (hung, absent)
    }
    config = Config.model_validate({"data_dir": tmp_path, "egress": {"routes": routes}})
    try:
        (slow, read_kernel), (missing, write) = secret_errors(config)
        assert slow == f"the secret file {hung} was not read within 0.2 s: its disk or mount hangs."
        assert read_kernel == READ_KERNEL_ERRORS
        assert missing == f"the secret file {absent} cannot be read: No such file or directory."
        assert write == f"(umask 077 && cat > {absent})"
        assert [one["secret_error"] for one in egress_report(config, 0, 1)["ways"]] == [slow, missing]
    finally:
        answers.set()
    assert [why for why, _ in secret_errors(config)] == [missing]
