"""For every secret and body: what was signed matches, and whatever differs in one place does not."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from daemon.channels.signatures import MAX_RETRY_AFTER_S, matches, read_timestamp, retry_after_s, sign, sign_at

secrets = st.binary(min_size=1, max_size=200)
bodies = st.binary(max_size=2000)
moments = st.integers(min_value=0, max_value=10**12 - 1)


@given(secrets, bodies)
def test_what_was_signed_matches(secret: bytes, body: bytes) -> None:
    assert matches(secret, body, sign(secret, body))


@given(secrets, bodies, st.data())
def test_a_changed_body_does_not(secret: bytes, body: bytes, data: st.DataObject) -> None:
    other = data.draw(bodies.filter(lambda changed: changed != body))
    assert not matches(secret, other, sign(secret, body))


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64), bodies)
def test_another_secret_does_not(secret: bytes, other: bytes, body: bytes) -> None:
    # HMAC pads a key with NULs to the block's length (RFC 2104), so keys that differ in those alone are the same.
    assume(secret.rstrip(b"\0") != other.rstrip(b"\0"))
    assert not matches(secret, body, sign(other, body))


@given(secrets, bodies, st.data())
def test_a_changed_signature_does_not(secret: bytes, body: bytes, data: st.DataObject) -> None:
    good = sign(secret, body)
    place = data.draw(st.integers(min_value=0, max_value=len(good) - 1))
    character = data.draw(st.characters().filter(lambda new: new != good[place]))
    assert not matches(secret, body, good[:place] + character + good[place + 1 :])


@given(secrets, bodies, moments, moments)
def test_a_changed_timestamp_does_not(secret: bytes, body: bytes, moment: int, other: int) -> None:
    assume(moment != other)
    assert not matches(secret, b"%d." % other + body, sign_at(secret, moment, body))


@given(st.text(max_size=80), moments)
def test_no_header_breaks_the_readers(text: str, now_ms: int) -> None:
    wait = retry_after_s(text, now_ms)
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER_S
    moment = read_timestamp(text, now_ms)
    assert moment is None or abs(moment * 1000 - now_ms) <= 300_000
