"""Limits on what a report may read and list, and for how long."""

from __future__ import annotations

from typing import Final

MAX_SESSIONS: Final = 20_000
BUDGET_S: Final = 6.0  # seconds for reading session files: a status that comes late is useless
PATIENT_BUDGET_S: Final = 60.0  # seconds when the files are the only source: a complete report is worth the wait
MAX_LISTED: Final = 50  # the most items in a list of errors or of what needs attention
