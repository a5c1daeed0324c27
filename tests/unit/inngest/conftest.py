"""A night's database for the sweeps in this process."""

from tests.support.inngest_night import night

__all__ = ["night"]
