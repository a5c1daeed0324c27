"""Commands that are printed for somebody to copy."""

import pytest

from daemon.core.command_words import only_shows


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("clawbus config check", True),
        ("clawbus dead show M --session a/s", True), ("clawbus dead list --code X", True), ("clawbus dead requeue M", False),
        ("clawbus session kill 'show' list", False), ("systemctl restart clawbus", False), ("df -h '/data list'", True),
        ("clawbus logs -n 50 --level warning", True), ("dmesg --level=err", True), ("mount -o remount,rw /data", False),
    ],
)  # fmt: skip
def test_what_only_shows_is_no_repair(command: str, shows: bool) -> None:
    assert only_shows(command) is shows
