"""Templates: filled from an event's values, or refused when they are parsed."""

from typing import Any

import pytest

from daemon.core.templates import MissingFieldError, TemplateError, parse

VALUES: dict[str, Any] = {
    "place": "kitchen",
    "thread": None,
    "body": {
        "number": 7,
        "issue": {"number": 8, "open": True},
        "labels": ["a", "b"],
        "size": 1.5,
        "none": None,
        "": "",
    },
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("fixed", "fixed"),
        ("pr-{body.number}", "pr-7"),
        ("{body.pull.number|body.issue.number}", "8"),
        ("{thread|'none'}", "none"),
        ("{body.issue.open}-{body.labels.1}", "true-b"),
        ("{{{place}}}", "{kitchen}"),
    ],
)
def test_it_is_filled(text: str, filled: str) -> None:
    assert parse(text).render(VALUES) == filled


@pytest.mark.parametrize(
    "text", ["{thread}", "{body}", "{body.size}", "{body.labels.9}", "{body.labels.x}", "{body.number.x}"]
)
def test_what_has_no_value_is_missing(text: str) -> None:
    with pytest.raises(MissingFieldError):
        parse(text).render(VALUES)


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{a b}", "{a..b}", "{a|}", "{'x'|a}", "{a" + ".a" * 13 + "}", "x" * 4001, "{a}" * 21]
)
def test_a_malformed_one_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse(text)
