"""Reports what a poll found and what came of a send, as log events and to telemetry. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from daemon.core.delivery_plan import Bury
from daemon.engine.delivery_steps import Collected, Outcome
from daemon.engine.fate_steps import log_verdicts
from daemon.engine.sessions import Session
from daemon.logs.render import MAX_ITEMS
from daemon.store.messages import chunks
from daemon.telemetry.telemetry import Telemetry
from schema.rows import AckStatus

_TOLD_ONE_BY_ONE = 20  # deliveries in one go; of more, an event names a hundred


class DeliveryReport:
    """Methods are called in the event loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._log = structlog.get_logger("delivery")

    def looked(self, session: Session, found: Collected) -> None:
        """Report what a poll has read and settled."""
        log = self._log.bind(agent=session.key.agent, session=session.key.session)
        self._telemetry.ended(session.key.agent, session.key.session, found.endings)
        for claim in found.claimed:
            log.info("message_claimed", message=claim.message_id, incarnation=claim.incarnation)
        for action in found.settled:
            event = "message_completed" if action.status is AckStatus.COMPLETED else "message_failed"
            log.info(event, message=action.message_id, incarnation=action.incarnation)
        log_verdicts(log, found.verdicts)
        for dead in found.buried:
            self._dead(session, dead)
        for send in found.sends:
            if send.in_doubt:
                channel = send.address.channel_type
                log.warning("delivery_in_doubt", message_out=send.candidate.row.id, channel=channel,
                            attempt=send.candidate.attempts + 1)  # fmt: skip
                self._telemetry.in_doubt(channel)
        for item in found.deferred:
            log.warning("delivery_deferred", message_out=item.candidate.row.id, code=item.reason, error=item.error)
            self._telemetry.deferred(item.address.channel_type, item.reason)

    def sent(self, session: Session, outcomes: Sequence[Outcome], buried: Sequence[Bury]) -> None:
        """Report recorded sends; `buried` are the answers among them that were given up."""
        log = self._log.bind(agent=session.key.agent, session=session.key.session)
        dead_ids = {dead.candidate.row.id for dead in buried}
        done = [one for one in outcomes if one.sent and one.error is None and not one.not_wanted]
        if len(done) > _TOLD_ONE_BY_ONE:
            ids = [outcome.send.candidate.row.id for outcome in done]
            for part in chunks(ids, MAX_ITEMS):  # an event shows no more of a list
                log.info("messages_delivered", count=len(part), channel=done[0].send.address.channel_type,
                         messages_out=part)  # fmt: skip
        for outcome in outcomes:
            row = outcome.send.candidate.row
            self._tell(session, outcome)
            if outcome.not_wanted:
                log.debug("answer_not_wanted", message_out=row.id, in_reply_to=row.in_reply_to,
                          channel=outcome.send.address.channel_type)  # fmt: skip
            elif outcome.sent and outcome.error is None:
                if len(done) > _TOLD_ONE_BY_ONE:
                    continue
                log.info("message_delivered", message_out=row.id, in_reply_to=row.in_reply_to,
                         channel=outcome.send.address.channel_type, attempt=outcome.send.candidate.attempts + 1)  # fmt: skip
            elif outcome.sent and row.id not in dead_ids:
                log.warning("delivery_failed", message_out=row.id, code=outcome.error_code, error=outcome.error,
                            channel=outcome.send.address.channel_type, attempt=outcome.send.candidate.attempts + 1,
                            in_doubt=outcome.in_doubt)  # fmt: skip
        for dead in buried:
            self._dead(session, dead)

    def _tell(self, session: Session, outcome: Outcome) -> None:
        if not outcome.sent or outcome.begun is None or outcome.not_wanted:
            return
        if outcome.in_doubt:
            self._telemetry.in_doubt(outcome.send.address.channel_type)
        candidate = outcome.send.candidate
        self._telemetry.sent(
            outcome.begun, session.key.agent, session.key.session, outcome.send.address.channel_type, candidate.row.id,
            candidate.cause, ended_at=outcome.ended_at, error_code=outcome.error_code, attempt=candidate.attempts + 1,
        )  # fmt: skip

    def _dead(self, session: Session, dead: Bury) -> None:
        key, candidate = session.key, dead.candidate
        self._telemetry.buried(key.agent, key.session, candidate.row.id, candidate.cause, dead.reason)
        self._log.error("delivery_dead_lettered", agent=session.key.agent, session=session.key.session,
                        message_out=dead.candidate.row.id, code=dead.reason, error=dead.error)  # fmt: skip
