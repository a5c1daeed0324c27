"""Where the webhook channel may listen, and where its secrets come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.channels.webhook_settings import WebhookSettings, is_private, read_keys
from daemon.config.addresses import split_listen
from daemon.core.errors import ConfigError

SECRET = "a long enough secret"


def settings(**hook: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"hooks": {"h": {"agent": "a", "session": "s", **hook}}})


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.1.1"),
        *("fd00::1", "fe80::1", "fe80::1%eth0", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    ],
)
def test_private_addresses(host: str) -> None:
    assert is_private(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "8.8.8.8", "172.32.0.1", "100.64.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255"),  # noqa: S104 - these are what must be refused
        *("2001:4860:4860::8888", "::ffff:8.8.8.8", "::ffff:0.0.0.0"),
    ],
)
def test_addresses_that_strangers_can_reach(host: str) -> None:
    assert not is_private(host)
    listen = f"[{host}]:80" if ":" in host else f"{host}:80"
    with pytest.raises(ValidationError, match="neither a loopback nor a private address"):
        WebhookSettings(listen=listen)
    assert WebhookSettings(listen=listen, allow_public=True).listen == listen


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:8650", ("127.0.0.1", 8650)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_listen(listen: str, expected: tuple[str, int]) -> None:
    assert split_listen(listen) == expected


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "8650",
        "127.0.0.1",
        "127.0.0.1:",
        ":8650",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "::1:80",
        "host:80",
        "127.0.0.1:\uff18\uff10",
    ],
)
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(ValueError, match=r"ADDRESS:PORT|IP address|brackets"):
        split_listen(listen)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "example.org",
            "ftp://example.org/",
            "http://",
            "http:///x",
            "http://u:p@example.org/",
            "http://example.org/#x",
        ),
        *(
            "http://example.org:x/",
            "http://[::1/",
            "http://exa mple.org/",
            "http://example.org/\n",
            "http://exämple.org/",
        ),
    ],
)
def test_a_reply_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ValidationError):
        settings(secret=SECRET, reply_url=url, reply_secret=SECRET * 2)


@pytest.mark.parametrize(
    "hook",
    [
        {},
        {"secret": SECRET, "secret_env": "X"},
        {"secret": SECRET, "reply_url": "http://127.0.0.1/"},
        {"secret": SECRET, "reply_secret": SECRET * 2},
        {"secret": SECRET, "reply_url": "http://127.0.0.1/", "reply_secret": SECRET * 2, "reply_secret_env": "X"},
    ],
)
def test_exactly_one_source_for_each_secret(hook: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one of"):
        settings(**hook)


def test_secrets_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file, with its newline\n")
    monkeypatch.setenv("HOOK_SECRET", "from the environment")
    keys = read_keys("webhook", settings(secret_file=str(tmp_path / "secret")))
    assert keys["h"].inbound == b"from a file, with its newline"
    hook = {"secret": SECRET, "reply_url": "https://example.org/x", "reply_secret_env": "HOOK_SECRET"}
    keys = read_keys("webhook", settings(**hook))
    assert (keys["h"].inbound, keys["h"].reply) == (SECRET.encode(), b"from the environment")


def test_no_secret_is_shown() -> None:
    hook = {"secret": SECRET, "reply_url": "https://example.org/token", "reply_secret": SECRET * 2}
    made = settings(**hook)
    shown = f"{made!r} {read_keys('webhook', made)!r}"
    assert SECRET not in shown
    assert "token" not in shown


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        ({"secret": "short"}, r"channels\.webhook\.hooks\.h\.secret: .* at least 8"),
        ({"secret_env": "CLAWBUS_TEST_NOT_SET"}, r"channels\.webhook\.hooks\.h\.secret_env: .*CLAWBUS_TEST_NOT_SET"),
        ({"secret_file": "/nonexistent/secret"}, r"channels\.webhook\.hooks\.h\.secret_file: .*/nonexistent/secret"),
        ({"secret_file": "/dev/zero"}, r"channels\.webhook\.hooks\.h\.secret_file: .*too short for a secret"),
        (
            {"secret": SECRET, "reply_url": "http://127.0.0.1/", "reply_secret": SECRET},
            r"channels\.webhook\.hooks\.h\.reply_secret: must not be the hook's own",
        ),
    ],
)
def test_a_secret_that_cannot_be_used(hook: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_keys("webhook", settings(**hook))


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "ä"])
def test_a_hooks_name_is_a_name(name: str) -> None:
    with pytest.raises(ValidationError):
        WebhookSettings.model_validate({"hooks": {name: {"agent": "a", "session": "s", "secret": SECRET}}})
