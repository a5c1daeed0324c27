"""A slot's claim of the data folder: taken under the folder's lock, given up by a hand-over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from daemon.core.clock import Clock
from daemon.core.deploy_errors import NotServingError, SlotStateError
from daemon.core.slot_steps import breach_at_start, claim, is_reversible, roll_back, stopped
from daemon.core.slots import other
from daemon.deploy.standby_client import StandbyClient
from daemon.deploy.state_file import is_unmarked, mark_stopped, read_state, write_state


@dataclass(slots=True)
class Lease:
    """What one slot's daemon knows of its turn. `rollback`: why it takes the folder back in a deploy, if it does.

    `patience_s`: how long it waits for the other slot's standby before it says that there is none.
    """

    data_dir: Path
    slot: str
    release: str
    clock: Clock
    cooldown_s: float
    rollback: str = ""
    patience_s: float = 0.0
    epoch: int = field(default=0)
    handed_over: bool = field(default=False)

    def take(self, last_epoch: int) -> None:
        """Record that this slot serves. Call with the folder's lock held.

        `last_epoch` is central.db's. It is above the file's where that was lost or is an older copy; the higher one counts.

        Raise NotServingError when the other slot is to serve: recorded, or because this start is a breach of its bake.
        """
        found, now, boot = read_state(self.data_dir), self.clock.now_ms(), boot_id()
        state = replace(found, epoch=max(found.epoch, last_epoch))
        cooldown_ms = int(self.cooldown_s * 1000)
        if (
            self.rollback
            and state.active is not None
            and state.active.from_slot == self.slot
            and state.serving != self.slot
        ):
            state = roll_back(state, self.rollback, now, cooldown_ms)
        elif (breach := breach_at_start(state, self.slot, self.release, boot)) is not None:
            # Going back to a slot in which nobody waits would leave the folder without a daemon.
            standby = StandbyClient(self.data_dir, other(self.slot))
            barred = standby.why_absent(self.patience_s) if is_reversible(state) else ""
            state = roll_back(state, breach, now, cooldown_ms, barred=barred)
            write_state(self.data_dir, state)
            if state.serving != self.slot:
                raise NotServingError(f"this start ends the bake: {breach}.")
        state = claim(state, self.slot, self.release, now, boot)
        # A full disk keeps no daemon from starting that is on record already.
        if state != found and not is_unmarked(self.data_dir, found, state):
            write_state(self.data_dir, state)
        self.epoch = state.epoch

    def note_stop(self) -> None:
        """Record that the daemon was asked to stop. Call with the folder's lock held."""
        state = read_state(self.data_dir)
        if state.active is None or state.serving != self.slot:
            return
        try:
            write_state(self.data_dir, stopped(state))
        except SlotStateError:  # on a full disk: else the next start counts as the release's fault
            with suppress(OSError):
                mark_stopped(self.data_dir, state.active)


def boot_id() -> str:
    """Return the id of the machine's boot (random(4)); `unknown` where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
