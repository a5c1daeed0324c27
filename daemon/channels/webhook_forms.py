"""The ways in which services sign their webhooks: verify a request's sender and find its id. Pure.

From a request's headers and body, each form decides whether the sender has the hook's secret, and finds the id (the same for a
redelivery of the same event) and the kind of event. No refusal reveals what would have been accepted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final, Protocol, cast

from daemon.channels import webhook_refusals as refusals
from daemon.channels.signatures import matches, read_timestamp, signed_request
from schema.frozen import frozen
from schema.ids import check_message_id, is_message_id

_STRIPE_SIGNATURES: Final = 8  # the most v1= signatures of one header that are checked
_DATED: Final = "is missing, no whole number of epoch seconds, or over 5 minutes off."


@frozen
class Signed:
    """The parts of a request that a signature may cover. `path` is decoded; header names are lower case."""

    headers: Mapping[str, str]
    path: str
    body: bytes
    now_ms: int


class SignatureForm(Protocol):
    """One service's way to sign."""

    @property
    def event_header(self) -> str | None:
        """The header that names the kind of event."""
        ...

    @property
    def strict_forms(self) -> bool:
        """Whether a form post must have one field, `payload`, that holds JSON."""
        ...

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """Raise SignatureRefusedError if the headers alone show that the request is unsigned or too old."""
        ...

    def check(self, secret: bytes, request: Signed) -> str:
        """Check a request and return the message's id.

        Raise SignatureRefusedError, BodyRefusedError or InvalidNameError.
        """
        ...


class Clawbus:
    """X-Clawbus-Signature over timestamp, path, id and body."""

    event_header = "x-clawbus-event"
    strict_forms = False

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, "X-Clawbus-Signature")
        if read_timestamp(headers.get("x-clawbus-timestamp", ""), now_ms) is None:
            raise refusals.SignatureRefusedError(f"X-Clawbus-Timestamp {_DATED}")

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm. Without a sender's id, the signature is the id, so the same request is the same message."""
        given, stamp = request.headers["x-clawbus-signature"], request.headers["x-clawbus-timestamp"]
        message_id = request.headers.get("x-clawbus-id")
        if not matches(secret, signed_request(stamp, request.path, message_id or "", request.body), given):
            raise refusals.SignatureRefusedError("X-Clawbus-Signature is wrong.")
        return check_message_id("sig-" + given.removeprefix("sha256=") if message_id is None else message_id)


class GitHub:
    """X-Hub-Signature-256 over the body; X-GitHub-Delivery is the id."""

    event_header = "x-github-event"
    strict_forms = True

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, "X-Hub-Signature-256")

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm."""
        if not matches(secret, request.body, request.headers["x-hub-signature-256"]):
            raise refusals.SignatureRefusedError("X-Hub-Signature-256 is wrong.")
        message_id = request.headers.get("x-github-delivery")
        if message_id is None:
            raise refusals.BodyRefusedError("X-GitHub-Delivery is missing.", hint="It becomes the message's id.")
        return check_message_id(message_id)


class GitLab:
    """X-Gitlab-Token is the secret itself. The id: Idempotency-Key, or X-Gitlab-Event-UUID with a digest of the body."""

    event_header = "x-gitlab-event"
    strict_forms = False

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, "X-Gitlab-Token")

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm."""
        given = request.headers["x-gitlab-token"].encode("utf-8", "surrogateescape")
        # Compare digests, because compare_digest reveals the length of its arguments.
        if not hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(secret).digest()):
            raise refusals.SignatureRefusedError("X-Gitlab-Token is wrong.")
        key = request.headers.get("idempotency-key")
        if key:
            return _as_id(key)
        return _as_id(f"{request.headers.get('x-gitlab-event-uuid', 'body')}-{_digest(request.body)[:32]}")


class Slack:
    """X-Slack-Signature, `v0=` over `v0:<timestamp>:<body>`. The id: the event's own, the same when Slack tries again."""

    event_header = None
    strict_forms = False

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, "X-Slack-Signature")
        if read_timestamp(headers.get("x-slack-request-timestamp", ""), now_ms) is None:
            raise refusals.SignatureRefusedError(f"X-Slack-Request-Timestamp {_DATED}")

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm."""
        given = request.headers["x-slack-signature"]
        stamp = request.headers["x-slack-request-timestamp"].encode("latin-1", "replace")
        if not given.startswith("v0=") or not matches(
            secret, b"v0:" + stamp + b":" + request.body, "sha256=" + given.removeprefix("v0=")
        ):
            raise refusals.SignatureRefusedError("X-Slack-Signature is wrong.")
        return _as_id(_field(request.body, "event_id") or f"body-{_digest(request.body)}")


class Stripe:
    """Stripe-Signature, `t=<timestamp>,v1=<hex>` over `<timestamp>.<body>`. The id: the event's own."""

    event_header = None
    strict_forms = False

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, "Stripe-Signature")
        stamp, _ = _stripe(headers["stripe-signature"])
        if read_timestamp(stamp, now_ms) is None:
            raise refusals.SignatureRefusedError(f"t= of Stripe-Signature {_DATED}")

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm."""
        stamp, signatures = _stripe(request.headers["stripe-signature"])
        signed = stamp.encode("latin-1", "replace") + b"." + request.body
        if not any(matches(secret, signed, f"sha256={one}") for one in signatures):
            raise refusals.SignatureRefusedError("Stripe-Signature is wrong.")
        return _as_id(_field(request.body, "id") or f"body-{_digest(request.body)}")


@frozen
class Hmac:
    """A header with the HMAC-SHA256 of the body: hex, with or without `sha256=`, or base64."""

    signature_header: str
    id_header: str | None = None
    event_header: str | None = None
    strict_forms: bool = False

    def early(self, headers: Mapping[str, str], now_ms: int) -> None:
        """See SignatureForm."""
        _needed(headers, self.signature_header)

    def check(self, secret: bytes, request: Signed) -> str:
        """See SignatureForm."""
        given = request.headers[self.signature_header.lower()].strip()
        made = hmac.new(secret, request.body, hashlib.sha256).digest()
        forms = (made.hex(), f"sha256={made.hex()}", base64.b64encode(made).decode())
        text = given.lower() if len(given) >= len(forms[0]) else given  # accept upper-case hex
        found = [hmac.compare_digest(one.encode(), text.encode("utf-8", "surrogateescape")) for one in forms]
        if not any(found):
            raise refusals.SignatureRefusedError(f"{self.signature_header} is wrong.")
        if self.id_header is None:
            return f"body-{_digest(request.body)}"
        message_id = request.headers.get(self.id_header.lower())
        if not message_id:
            raise refusals.BodyRefusedError(f"{self.id_header} is missing.", hint="It becomes the message's id.")
        return _as_id(message_id)


def slack_challenge(payload: Mapping[str, object]) -> str | None:
    """Return the challenge that Slack expects back when it checks a new URL (url_verification); None for other requests."""
    body = payload.get("body")
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, object]", body)
    challenge = fields.get("challenge")
    return challenge if fields.get("type") == "url_verification" and isinstance(challenge, str) else None


def raw_of(body: bytes) -> dict[str, str]:
    """Return the body's exact bytes for the agent: as text, or as base64 if they are not text."""
    try:
        return {"raw": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(body).decode()}


def _needed(headers: Mapping[str, str], name: str) -> None:
    if name.lower() not in headers:
        raise refusals.SignatureRefusedError(f"{name} is missing.")


def _stripe(header: str) -> tuple[str, list[str]]:
    """Return (timestamp, v1 signatures) of the header. A service that rotates its secret sends two signatures."""
    parts = [part.strip().partition("=") for part in header.split(",")[:32]]
    stamp = next((value for name, _, value in parts if name == "t"), "")
    return stamp, [value for name, _, value in parts if name == "v1"][:_STRIPE_SIGNATURES]


def _field(body: bytes, name: str) -> str | None:
    """Return a text field at the top of a JSON body, or None."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None


def _as_id(text: str) -> str:
    """Return the sender's id if it is a valid message id, else its digest."""
    return text if is_message_id(text) else f"id-{_digest(text.encode('utf-8', 'surrogatepass'))}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
