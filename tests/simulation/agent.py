"""The agent of a simulated container: a provider that answers, dawdles, fails, lies silent, hangs or takes its container down.

It answers every turn with the ids of the messages it saw, so that the checks can tell what was worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import anyio

from container_runner.providers.protocol import Answer, DeclaredTimeout, OutMessage, Progress, Turn, TurnMessage
from container_runner.shared.errors import TurnDeferredError, TurnFailedError
from schema.ids import row_id
from schema.questions import Option, Question
from schema.rows import Kind
from tests.simulation.own_schedules import request_for
from tests.simulation.talking import Talking
from tests.simulation.world import World

POISON = "poison"  # a content that takes down whoever works on it
BAD = "bad"  # a content that every turn fails with
LATER = "later"  # a content that is put off some times before it is answered


class SimProvider:
    """container_runner.providers.protocol.Provider."""

    def __init__(self, world: World, container: str, talking: Talking, die: Callable[[str], None]) -> None:
        self._world = world
        self._talking = talking
        self._container = container
        self._die = die
        # Of its own: a draw of the world's more would make another run of every seed.
        self._asks = Random(f"asks {world.seed} {container}")
        self._talks_first = self._asks.random() < 0.7
        self.accepts_follow_ups = world.chance(0.3)
        self.silence = DeclaredTimeout("agent", world.between(30, 300)) if world.chance(0.3) else None

    async def run(self, turn: Turn, progress: Progress) -> Answer:
        """One turn, well or not."""
        world = self._world
        ids = [message.id for message in turn.messages]
        world.step(self._container, f"turn over {' '.join(ids)}")
        if any(POISON in message.content for message in turn.messages):
            await anyio.sleep(world.between(0.1, 2.0))
            await self._end_all("of a poisonous message")
        if any(BAD in message.content for message in turn.messages):
            world.fault("agent_bad_message", self._container)
            raise TurnFailedError("the agent cannot bear one of these")
        for message in turn.messages:
            if LATER in message.content and world.put_off[message.id] < 3:
                world.put_off[message.id] += 1
                world.fault("agent_later", self._container)
                raise TurnDeferredError("busy", after_s=world.rng.choice((None, 0.0, 1.0, 30.0)))
        await self._plan_ahead(turn, progress)
        if self._talks_first:
            await self._talking.speak(turn, progress)
        if world.chance(world.faults.agent):
            await self._go_wrong(progress)
        else:
            await anyio.sleep(world.rng.expovariate(2.0))
        if self._asks.random() < 0.35:
            await self._ask(turn, progress)
        if not self._talks_first:
            await self._talking.speak(turn, progress)
        seen = list(turn.messages)
        if self.accepts_follow_ups and world.chance(0.5):
            with anyio.move_on_after(world.between(0.1, 5.0)):
                seen += await progress.follow_ups()
        world.step(self._container, f"answers {' '.join(message.id for message in seen)}")
        return Answer(self._outputs(seen, turn))

    async def close(self) -> None:
        """Nothing outlives its turn."""

    async def _ask(self, turn: Turn, progress: Progress) -> None:
        """Ask whether to go on, and keep what was answered for the checks. A later try asks the same."""
        world = self._world
        options = (Option("yes", "yes"), Option("no", "no"))
        question = Question("Go on?", options, free_text=False, timeout_s=self._asks.uniform(1.0, 120.0))
        decision = await progress.ask(question, "go-on")
        about = next(message for message in turn.messages if message.trigger)
        identity = row_id("q", about.life((turn.agent, turn.session)), "k:go-on")
        assert decision is not None
        world.step(self._container, f"{identity} is {decision.outcome.value}")
        world.decisions.append((turn.agent, turn.session, identity, decision))

    async def _plan_ahead(self, turn: Turn, progress: Progress) -> None:
        """Make a schedule of its own, or change one, as a program's line does."""
        world = self._world
        about = next(message.id for message in turn.messages if message.trigger)
        wanted = request_for(world.seed, about)
        if wanted is not None:
            world.step(self._container, f"asks for {wanted}")
            world.counts["schedules_asked"] += 1
            if Random(f"way {world.seed} {about}").random() < 0.5:
                await progress.say(OutMessage(content=wanted, kind=Kind.SYSTEM))
            else:
                await self._talking.request(wanted)

    async def _go_wrong(self, progress: Progress) -> None:
        world = self._world
        kind = world.rng.choice(("fail", "raise", "hang", "die", "silent", "tool", "slow", "boundary", "later"))
        world.fault(f"agent_{kind}", self._container)
        if kind == "fail":
            raise TurnFailedError("the agent says no")
        if kind == "later":
            raise TurnDeferredError("later", after_s=world.rng.choice((None, 0.0, world.between(0, 60))))
        if kind == "raise":
            raise ValueError("a defect of the provider")
        if kind == "hang":
            await anyio.sleep_forever()
        if kind == "die":
            await anyio.sleep(world.between(0.0, 3.0))
            await self._end_all("of its own agent")
        if kind == "silent":
            await anyio.sleep(world.between(10, 200))
        if kind == "tool":
            await progress.tool_started("bash", world.between(10, 120))
            await anyio.sleep(world.between(1, 100))
            await progress.tool_ended()
        if kind == "slow":
            for _ in range(world.rng.randrange(2, 8)):
                await anyio.sleep(world.between(1, 15))
                progress.event()
        if kind == "boundary":  # as long as the time after which it is stuck
            await anyio.sleep(world.rng.choice((20.0, 30.0, 60.0)) + world.between(-1.0, 1.0))

    async def _end_all(self, why: str) -> None:
        self._die(why)
        await anyio.sleep_forever()

    def _outputs(self, seen: Sequence[TurnMessage], turn: Turn) -> list[OutMessage]:
        world = self._world
        outputs: list[OutMessage] = []
        for number in range(world.rng.choice((1, 1, 1, 2, 3))):
            content = {"text": f"answer {number}", "seen": [message.id for message in seen]}
            to = None
            if turn.destinations and world.chance(0.25):
                to = world.rng.choice(turn.destinations).name
            elif world.chance(0.03):
                to = "nobody"
            later = None
            if world.chance(0.08):
                later = world.clock.now_ms() + int(world.between(1_000, 90_000))
            kind = "riddle" if world.chance(0.02) else "chat"
            outputs.append(OutMessage(content=content, to=to, deliver_after=later, kind=kind))
        return outputs
