"""`clawbus send --at` and `send --every`: a message that is due at another time, and one that comes again and again."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import typer

from daemon.cli.envelope import Outcome
from daemon.cli.invocation import Invocation
from daemon.core.clock import SystemClock

AtOption = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="Have it worked on then: 18:00, 'tomorrow 9:00', 2026-12-24T18:00, 'in 2h'."),
]  # fmt: skip
EveryOption = Annotated[
    str | None,
    typer.Option("--every", metavar="RULE", help="Make a schedule of it: 15m, 2h, 1d, or cron: '0 9 * * 1-5'."),
]
ZoneOption = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="Of --at and --every; by default the configuration's."),
]


def due_at(invocation: Invocation, at: str | None, timezone: str | None) -> int | None:
    """Return when a message of `send --at` is due, in epoch milliseconds; None without it. Raise ScheduleError."""
    if at is None:
        if timezone is not None:
            raise typer.BadParameter("--timezone belongs to --at and --every.")
        return None
    from daemon.core.time_phrases import future_instant  # noqa: PLC0415

    return future_instant(at, timezone or invocation.config.timezone, SystemClock().now_ms())


def refuse_beside_every(**given: object) -> None:
    """Raise a usage error for options of one message: a schedule has none of them."""
    for name, value in given.items():
        if value is not None and value is not False and value != []:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(
                f"--every makes a schedule: leave {option} out (see `clawbus schedule add --help`)."
            )


def send_every(
    invocation: Invocation, text: str, session: tuple[str, str], every: str, key: str | None, mailbox: str, timezone: str | None
) -> Outcome:  # fmt: skip
    """Add the schedule. Without a `key` it has one made from its session, rule and text: the same command changes nothing."""
    from daemon.cli.operator import user  # noqa: PLC0415
    from daemon.cli.schedule import done, steps_after_put  # noqa: PLC0415
    from daemon.core.schedule_verbs import PutSchedule  # noqa: PLC0415
    from daemon.core.schedules import check_key  # noqa: PLC0415

    zone = timezone or invocation.config.timezone
    identity = check_key(key) if key is not None else _key(*session, mailbox, every, zone, text)
    verb = PutSchedule(*session, by=user(), id=identity, text=text, place=mailbox, timezone=zone, **_rule(every))
    return done(invocation, verb, steps_after_put(verb))


def _key(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
    return f"send-{digest[:8]}"


def _rule(every: str) -> dict[str, Any]:
    """Return the rule as PutSchedule takes it. Raise a usage error."""
    from daemon.cli.durations import span_ms  # noqa: PLC0415

    fields = len(every.split())
    if fields == 5:
        return {"cron": every}
    try:
        return {"every_ms": span_ms(every)}
    except typer.BadParameter:
        raise typer.BadParameter(
            f"--every {every!r} is neither a duration (15m, 2h, 1d) nor a cron expression of five fields:"
            " minute, hour, day of month, month, day of week ('0 9 * * 1-5' is 09:00 on weekdays)."
        ) from None
