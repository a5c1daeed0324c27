"""Compares what agents report to have used in a day with what they may use. Pure."""

from __future__ import annotations

from dataclasses import replace

from schema.frozen import frozen
from schema.rows import TurnUsage


@frozen
class AgentDay:
    """What one agent used in one day (YYYY-MM-DD): turns that it began, tokens in and out, and what they cost."""

    day: str
    agent: str
    turns: int = 0
    tokens: int = 0
    cost: float = 0.0

    def more(self, turns: int, usage: TurnUsage | None) -> AgentDay:
        """Return the day with these turns, and what an ended turn used, added."""
        used = usage or TurnUsage()
        tokens = (used.input_tokens or 0) + (used.output_tokens or 0)
        return replace(
            self, turns=self.turns + turns, tokens=self.tokens + tokens, cost=self.cost + max(used.cost or 0.0, 0.0)
        )

    def since(self, refill: AgentDay | None) -> AgentDay:
        """Return what was used after an operator refilled the budget; all of it without a refill."""
        if refill is None:
            return self
        return replace(
            self,
            turns=max(0, self.turns - refill.turns),
            tokens=max(0, self.tokens - refill.tokens),
            cost=max(0.0, self.cost - refill.cost),
        )


@frozen
class AgentBudget:
    """What an agent may use in a day; None means no limit. `cost` is in the currency that the agent reports."""

    turns: int | None = None
    tokens: int | None = None
    cost: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self != AgentBudget()

    def exceeded(self, used: AgentDay) -> str | None:
        """Return which limit is used up, such as `20 of 20 turns`; None while something is left of each."""
        if self.turns is not None and used.turns >= self.turns:
            return f"{used.turns} of {self.turns} turns"
        if self.tokens is not None and used.tokens >= self.tokens:
            return f"{used.tokens} of {self.tokens} tokens"
        if self.cost is not None and used.cost >= self.cost:
            return f"{used.cost:.2f} of {self.cost:.2f} of cost"
        return None

    def described(self, used: AgentDay) -> str:
        """Return what was used of each limit, such as `3 of 20 turns, 100 of 5000 tokens`."""
        parts = [
            f"{have} of {limit} {what}"
            for have, limit, what in (
                (str(used.turns), self.turns, "turns"),
                (str(used.tokens), self.tokens, "tokens"),
                (f"{used.cost:.2f}", f"{self.cost:.2f}" if self.cost is not None else None, "of cost"),
            )
            if limit is not None
        ]
        return ", ".join(parts)
