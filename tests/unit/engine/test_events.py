"""The publisher of the engine's events: exact classes, in order, and a failing subscriber harms nobody."""

from structlog.testing import capture_logs

from daemon.core.events import Event, MessageExpired, MessageRefused
from daemon.engine.events import Events


def test_a_subscriber_gets_its_own_kind_in_order() -> None:
    events, seen = Events(), list[Event]()
    events.subscribe(MessageRefused, seen.append)
    first, second = MessageRefused(1, "A"), MessageRefused(2, "B")
    events.publish_all([first, MessageExpired(1, "a", "s", "m"), second])
    assert seen == [first, second]


def test_a_failing_subscriber_is_logged_and_the_others_still_hear() -> None:
    events, seen = Events(), list[Event]()

    def broken(_: MessageRefused) -> None:
        raise RuntimeError("a defect")

    events.subscribe(MessageRefused, broken)
    events.subscribe(MessageRefused, seen.append)
    with capture_logs() as logs:
        events.publish(MessageRefused(1, "A"))
    assert seen == [MessageRefused(1, "A")]
    (line,) = logs
    assert (line["event"], line["what"], line["log_level"]) == ("subscriber_raised", "MessageRefused", "error")
    assert line["subscriber"].endswith("broken")
