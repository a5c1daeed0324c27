"""A real daemon with containers that attack it, and a bystander whose round trips are measured meanwhile."""

import shutil
import time
from pathlib import Path
from typing import Any, Final

from daemon.core.errors import RemoteError
from tests.support.agents import ECHO, command_agent
from tests.support.daemon import RealDaemon, eventually

PROGRAM: Final = Path(__file__).with_name("hostile_agent.py")
# The bystander's answer may take this long, whatever its neighbours do; the machine that tests run on may be busy, too.
# A busy machine's Docker may be slow; a bus that waits for a hostile file waits for session_timeout_s, 15 s.
ROUND_TRIP_S: Final = 12.0
GROWTH_BYTES: Final = 150 * 1024**2

LIMITS: Final = f"""
[limits]
max_outbound_file_bytes = {24 * 1024**2}
max_out_folder_bytes = {64 * 1024**2}
max_out_folder_files = 20000
"""


class HostileBus(RealDaemon):
    """`evil` does what its messages say (hostile_agent.py), `echo` is the bystander. With Docker, limits are tight."""

    def __init__(self, image: str) -> None:
        # What an attack begins goes on after its turn.
        tight = f'memory_bytes = {96 * 1024**2}\npids = 64\ncpus = 0.5\nleftovers = "keep"\n'
        evil = command_agent("evil", ("python3", "-I", "-S", "/workspace/agent/hostile_agent.py")) + tight
        tables = f'[docker]\nimage = "{image}"\n' + LIMITS + ECHO + evil
        super().__init__(
            tables, runtime="docker", sweep_keys="claim_stuck_s = 4.0\nsession_timeout_s = 15.0\nmax_tries = 2\n"
        )
        self.config.write_text(self.config.read_text().replace("[delivery]\n", "[delivery]\nmax_dead_letters = 1000\n"))
        self.hostile = True
        folder = self.data / "agents" / "evil"
        folder.mkdir(parents=True)
        shutil.copy(PROGRAM, folder)
        for path in (self.data, self.data / "agents"):
            path.chmod(0o700)

    def attack(self, session: str, text: str, *, answered: bool = True) -> str:
        """Tell `evil` what to do; its message's id."""
        if answered:
            assert self.ask("say ready", agent="evil", session=session) == {"text": "ready"}
        return self.post(text, agent="evil", session=session)

    def nudge(self, session: str) -> None:
        """A message to the attacker. While its files are held the sender is refused, and told so."""
        try:
            self.post("say again", agent="evil", session=session)
        except RemoteError as error:
            if error.remote_code != "READ_DEADLINE":
                raise

    def bystander(self) -> float:
        """Seconds that a message of another session takes, there and back."""
        began = time.monotonic()
        answer = self.ask("hello", agent="echo", session="bystander")
        assert "hello" in str(answer)
        return time.monotonic() - began

    def meanwhile(self, seconds: float, until: Any = None) -> float:
        """The bystander's slowest round trip in so many seconds, or until something is so."""
        slowest, deadline = 0.0, time.monotonic() + seconds
        while time.monotonic() < deadline and not (until is not None and until()):
            slowest = max(slowest, self.bystander())
            time.sleep(0.02)
        return slowest

    def state(self, session: str) -> str:
        return self.show("evil", session)["state"]

    def quarantined(self, session: str) -> str:
        """Wait for it; the reason. Its container is ended, and the operator is told the next step."""
        eventually(f"{session} is in quarantine", lambda: self.state(session) == "quarantined", 60)
        report = self.show("evil", session)
        ways = (f"`clawbus session release evil {session}`", f"`clawbus session reset evil {session} --discard`")
        assert any(one in report["explanation"] for one in ways)
        eventually(f"the container of {session} is ended", lambda: self.running("evil", session) is None, 30)
        return report["registry"]["quarantine_reason"]

    def resident(self) -> int:
        """The daemon's memory in bytes."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None
