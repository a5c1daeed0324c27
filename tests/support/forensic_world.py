"""A data folder as a daemon and its agents leave it, and the forensics looking at it. No daemon, nothing sleeps.

Sessions are SessionWorlds (the product's own functions write the host's side); the runtime's listing and the daemon's status
are given by the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.config.loading import load_config
from daemon.config.models import Config
from daemon.core.daemon_status import DaemonStatus
from daemon.core.facts import Container, DaemonState
from daemon.core.session_key import SessionKey
from daemon.inspect.containers import RuntimeSeen
from daemon.inspect.doctor import Doctor, Examination
from daemon.inspect.runs import Runs
from daemon.store import messages
from daemon.store.data_layout import VERSION_NAME
from daemon.store.incarnations import IncarnationRow
from daemon.store.registry import Registry
from daemon.store.transitions import change_status, schedule_retry
from schema.ids import session_path
from schema.rows import MessageStatus
from tests.support.session_world import NOW, SessionWorld

AGENT = "a"


@dataclass
class StillClock:
    """Wall time that the test moves; the other clock stands."""

    now: int = NOW

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return 0.0

    def slept_s(self) -> float:
        return 0.0


@dataclass
class ForensicWorld:
    """One data folder. `live` is what the daemon says of itself, None when it is down; `running` what the runtime lists."""

    root: Path
    clock: StillClock = field(default_factory=StillClock)
    live: dict[str, Any] | None = None
    state: DaemonState = DaemonState.DOWN
    refusal: str | None = None  # the code of the error that the daemon answers with
    running: list[Container] = field(default_factory=list)
    runtime_error: str | None = None
    image_error: str | None = None
    image_others: tuple[tuple[str, str], ...] = ()
    image_repair: str | None = None
    images_checked: bool = False
    pauses: list[float] = field(default_factory=list)
    on_pause: Any = None

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / VERSION_NAME).write_text("1\n")
        self.registry = Registry(self.root / "central.db")
        self.registry.install_id(NOW)
        text = f'data_dir = "{self.root}"\n[agents.{AGENT}]\n'
        (self.root.parent / "clawbus.toml").write_text(text)

    def up(self) -> None:
        """A daemon runs and has swept just now."""
        self.state, self.live = DaemonState.UP, {"degraded": [], "last_sweep": {"at": self.clock.now}, "clock": None}

    @property
    def config(self) -> Config:
        return load_config(self.root.parent / "clawbus.toml")

    def session(self, name: str = "s") -> SessionWorld:
        """A session that the registry knows."""
        self.registry.activate(SessionKey(AGENT, name), NOW)
        return SessionWorld(session_path(self.root / "sessions", AGENT, name), self.clock.now)

    def incarnation(self, name: str, identity: str, *, alive: bool = True) -> None:
        """A container was started for a session; `alive`: the runtime lists it."""
        row = IncarnationRow(identity, SessionKey(AGENT, name), "docker", "f", None, self.clock.now)
        assert self.registry.begin_incarnation(row)
        self.registry.incarnation_started(identity, f"c-{identity}", self.clock.now)
        if alive:
            self.running.append(Container(f"c-{identity}", AGENT, name, identity, self.clock.now))

    def claimed(self, session: SessionWorld, message_id: str, by: str) -> None:
        """The container claimed it, and the host has seen that."""
        session.claim(message_id, by=by, at=self.clock.now)
        with session.files.inbound() as db, db.transaction():
            messages.note_claim(db, message_id, by, self.clock.now, self.clock.now)

    def settled(self, session: SessionWorld, message_id: str, by: str, status: str = "completed") -> None:
        """The host took note of the finish."""
        with session.files.inbound() as db, db.transaction():
            change_status(db, message_id, MessageStatus(status), status, self.clock.now, incarnation=by)
            messages.end_attempt(db, message_id, by, self.clock.now, status)

    def retried(self, session: SessionWorld, message_id: str, by: str, until: int) -> None:
        """The container ended before it was done."""
        with session.files.inbound() as db, db.transaction():
            messages.end_attempt(db, message_id, by, self.clock.now, "orphaned")
            schedule_retry(db, message_id, 1, until, self.clock.now, incarnation=by, reason="it ended")

    def look(self, session: tuple[str, str] | None = None) -> Examination:
        status = DaemonStatus(self.state, self.live)
        if self.refusal is not None:
            status = DaemonStatus(
                self.state, None, f"{self.refusal}: this request could not be answered.", self.refusal
            )
        doctor = Doctor(self.config, self.clock, lambda: status, runtime=lambda *_: self.listing())
        return doctor.examine(session, pause=self._pause)

    def codes(self) -> list[str]:
        return [one.code for one in self.look().diagnoses]

    def runs(self) -> Runs:
        return Runs(self.config, self.clock, synced=self.state is DaemonState.UP, runtime=lambda *_: self.listing())

    def listing(self) -> RuntimeSeen:
        if self.runtime_error is not None:
            return RuntimeSeen(None, self.runtime_error)
        return RuntimeSeen(
            tuple(self.running),
            image_error=self.image_error,
            image_repair=self.image_repair,
            image_others=self.image_others,
            images_checked=self.images_checked,
        )

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.on_pause is not None:
            self.on_pause()
