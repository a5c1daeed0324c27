"""The reasons why the gate refuses a request, each with the HTTP status and body for the agent's client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar, Final

from schema.errors import ClawbusError

_ANTHROPIC: Final[Mapping[int, str]] = {
    400: "invalid_request_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_GEMINI: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip


class EgressRefusal(ClawbusError):
    """The gate did not carry out an agent's request."""

    code = "EGRESS_REFUSED"
    default_hint = "`clawbus logs` shows the request; docs/egress.md explains routes and hosts."
    status: ClassVar[int] = 403


class BadRequestError(EgressRefusal):
    """The request is not HTTP/1.1, has ambiguous framing, or a path with dot segments."""

    code = "EGRESS_BAD_REQUEST"
    default_hint = "Correct the client; the gate speaks HTTP/1.1 to it."
    status = 400


class HeadTooLargeError(EgressRefusal):
    """The request's head is over 64 KiB."""

    code = "EGRESS_HEAD_TOO_LARGE"
    default_hint = "Send fewer or shorter headers."
    status = 431


class RequestTooLargeError(EgressRefusal):
    """The request's body is over egress.max_body_bytes."""

    code = "EGRESS_BODY_TOO_LARGE"
    default_hint = "Send less at once, or raise egress.max_body_bytes."
    status = 413


class RequestTooSlowError(EgressRefusal):
    """The whole request did not arrive in time."""

    code = "EGRESS_REQUEST_TIMEOUT"
    default_hint = "Send the whole request at once."
    status = 408


class NotAllowedError(EgressRefusal):
    """The agent has no such route, or may not reach this host, path or port."""

    code = "EGRESS_NOT_ALLOWED"
    default_hint = "To allow it, add it to an [egress.routes.NAME] or [egress.connect.NAME] table (docs/egress.md)."


class PrivateTargetError(EgressRefusal):
    """The host is, or resolves to, an address that is not public."""

    code = "EGRESS_PRIVATE_TARGET"
    default_hint = "To allow this, add HOST:PORT to egress.private_targets; otherwise check the host's DNS."


class SecretUnavailableError(EgressRefusal):
    """A route's secret_file cannot be read, or holds no usable secret. The session is not at fault."""

    code = "EGRESS_SECRET"
    default_hint = "Write the secret into the route's secret_file, readable by the daemon's user; no restart is needed."
    status = 503


class HostTroubledError(EgressRefusal):
    """The host is short of what a request needs, such as open files, and was for seconds. Nothing was sent to the target."""

    code = "EGRESS_HOST"
    default_hint = "`clawbus doctor` names what this host is short of; the agent's client may try again."
    status = 503


class UpstreamError(EgressRefusal):
    """The target could not be reached, or its answer was incomplete or not HTTP."""

    code = "EGRESS_UPSTREAM"
    default_hint = "Check the target and this host's network; the agent's client may try again."
    status = 502


class UpstreamTimeoutError(EgressRefusal):
    """The target did not accept a connection or send anything in time."""

    code = "EGRESS_UPSTREAM_TIMEOUT"
    default_hint = "Raise egress.connect_timeout_s or egress.silence_timeout_s if the target needs longer."
    status = 504


class BudgetExceededError(EgressRefusal):
    """The agent's daily budget is used up. The day ends in `retry_after_s` seconds."""

    code = "EGRESS_BUDGET"
    default_hint = "The budget is renewed at midnight; to allow more, raise egress.budgets.NAME and restart the daemon."
    status = 429

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GateBusyError(EgressRefusal):
    """The agents together already hold as many connections as the gate allows. Its last quarter is for agents with few."""

    code = "EGRESS_BUSY"
    default_hint = "Try again in a moment; `clawbus logs` shows which session opens connections."
    status = 503


def error_body(refusal: EgressRefusal, api: str) -> bytes:
    """Return the JSON body, in the error format that clients of this API expect. `api` is the route's `api`."""
    text = f"clawbus: {refusal} {refusal.hint}"
    status = refusal.status
    content: dict[str, object]
    if api == "anthropic":
        content = {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": text}}
    elif api == "openai":
        kind = "insufficient_quota" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
        content = {"error": {"message": text, "type": kind, "param": None, "code": refusal.code}}
    elif api == "gemini":
        content = {"error": {"code": status, "message": text, "status": _GEMINI.get(status, "INTERNAL")}}
    else:
        content = {"ok": False, "error": {"code": refusal.code, "message": str(refusal)}, "fix": refusal.hint}
    return json.dumps(content).encode()
