"""The gate's pure parts: addresses, headers, configuration, log lines."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.config.egress import Egress, egress_faults, split_target
from daemon.config.secret_files import read_secret_file
from daemon.core.public_addresses import is_public
from daemon.egress.headers import request_headers, response_headers
from daemon.egress.line_budget import LineBudget
from daemon.egress.refusals import BadRequestError, NotAllowedError, error_body
from daemon.egress.rules import Rules


def egress(**route: Any) -> Egress:
    table = {"upstream": "https://api.example.com/v1", "agents": ["helper"], **route}
    return Egress.model_validate(
        {"routes": {"r": table}, "connect": {"c": {"hosts": ["*.a.example:443"], "agents": ["*"]}}}
    )


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::8.8.8.8", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::10.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2001:0:a9fe:a9fe::", False),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("224.0.0.1", False),
        ("ff0e::1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "text", ["x", "x:0", "x:99999", "x:a", ":443", "a..b:443", "::1:443", "[x]:443", "*.x:443", "a b:1"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|is not"):
        split_target(text)


@pytest.mark.parametrize(
    ("route", "where"),
    [
        ({"upstream": "ftp://x"}, "upstream"),
        ({"upstream": "https://u:p@x"}, "upstream"),
        ({"upstream": "https://x?key=1"}, "upstream"),
        ({"header": "host"}, "header"),
        ({"header": "two words"}, "header"),
        ({"value": "Bearer"}, "value"),
        ({"paths": ["v1"]}, "paths"),
        ({"paths": ["/a*b"]}, "paths"),
        ({"env": {"CLAWBUS_X": "y"}}, "env"),
        ({"agents": []}, "agents"),
    ],
)
def test_routes_that_cannot_work(route: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as refused:
        egress(**route)
    assert refused.value.errors()[0]["loc"][-1] == where


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost", "[::1]", "0.0.0.0"])  # noqa: S104
def test_a_private_target_must_be_named(host: str) -> None:
    table = egress(upstream=f"http://{host}:8080")
    assert any("private_targets" in fault for fault in egress_faults(table, ["helper"]))
    named = table.model_copy(update={"private_targets": (f"{host}:8080",)})
    assert [*egress_faults(named, ["helper"])] == []


def test_hosts_match_whole_labels_and_the_port() -> None:
    rules = Rules(egress())
    assert rules.tunnel("anybody", b"X.A.example:443").host == "x.a.example"
    for refused in (b"a.example:443", b"xa.example:443", b"x.a.example:80", b"a.example.evil:443"):
        with pytest.raises(NotAllowedError):
            rules.tunnel("anybody", refused)
    with pytest.raises(BadRequestError):
        rules.proxied("anybody", b"https://x.a.example/")


def test_a_gemini_key_in_the_query_is_removed() -> None:
    target = Rules(egress(api="gemini")).routed("helper", b"/r/models?key=placeholder&alt=sse")
    assert target.path == b"/v1/models?alt=sse"
    assert target.shown == "/r/models"


def test_headers_of_the_hop_and_credentials_end_at_the_gate() -> None:
    target = Rules(egress(api="openai")).routed("helper", b"/r/x")
    given = [
        (b"Host", b"gate"), (b"Authorization", b"mine"), (b"Cookie", b"c"), (b"Connection", b"close, X-Odd, content-length"),
        (b"X-Odd", b"1"), (b"Content-Length", b"2"), (b"X-Forwarded-For", b"1"), (b"Accept", b"*/*"), (b"TE", b"trailers"),
    ]  # fmt: skip
    assert request_headers(given, target, (b"authorization", b"Bearer s")) == [
        (b"host", b"api.example.com"), (b"content-length", b"2"), (b"accept", b"*/*"), (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer s"),
    ]  # fmt: skip
    back = [
        (b"X-Echo", b"was Bearer s"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"9"),
        (b"ETag", b"e"),
    ]
    assert response_headers(back, target, (b"authorization", b"Bearer s")) == [(b"etag", b"e")]


@pytest.mark.parametrize(
    ("secret", "shown", "passes"),
    [
        (b"Bearer sk-0123456789", b"key sk-0123456789 is over its limit", False),
        (b"sk-0123456789", b"sk-0123456789", False),
        (b"Basic dXNlcjpwYXNz", b"dXNlcjpwYXNz", False),
        (b"Bearer sk-0123456789", b"key sk-...789 is over its limit", True),
        (b"Bearer s", b"sensible", True),  # so short a word is in other headers by chance
    ],
)
def test_a_header_of_an_answer_with_the_key_in_it_is_dropped(secret: bytes, shown: bytes, passes: bool) -> None:
    target = Rules(egress(api="openai")).routed("helper", b"/r/x")
    assert bool(response_headers([(b"x-warning", shown)], target, (b"authorization", secret))) is passes


def test_a_redirect_keeps_its_fragment() -> None:
    target = Rules(egress(api="openai")).routed("helper", b"/r/x")
    assert response_headers([(b"location", b"/v1/y?a=1#here")], target, None) == [(b"location", b"/r/y?a=1#here")]


@pytest.mark.parametrize("api", ["anthropic", "openai", "gemini", "plain"])
def test_every_shape_says_why_and_what_to_do(api: str) -> None:
    text = error_body(NotAllowedError("no way."), api).decode()
    assert "no way." in text
    assert "docs/egress.md" in text


def test_a_fifo_and_a_folder_are_no_secret(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "missing"):
        with pytest.raises(ValueError, match=str(tmp_path)):
            read_secret_file(tmp_path / name)


def test_a_flood_is_shown_as_a_count() -> None:
    lines = LineBudget()
    shown = [lines.take(0.0) for _ in range(100)]
    assert shown == [0] * 60 + [None] * 40
    assert lines.take(1.5) == 40


def test_agents_variables_name_the_route() -> None:
    table = egress(env={"BASE": "{url}/v1"})
    assert table.environment("helper") == {"BASE": "{gate}/r/v1"}
    assert table.environment("other") == {}
