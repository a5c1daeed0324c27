"""A night's database for the sweeps that run as programs of their own."""

from tests.support.inngest_night import night

__all__ = ["night"]
