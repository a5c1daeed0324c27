"""Limits on what a report may read and list, and for how long."""

from __future__ import annotations

from typing import Final

MAX_SESSIONS: Final = 20_000
BUDGET_S: Final = 6.0  # for reading session files; a late status is useless
PATIENT_BUDGET_S: Final = 60.0  # when the files are the only source: a report that leaves nothing out is worth the wait
MAX_LISTED: Final = 50  # of what needs attention, of errors
