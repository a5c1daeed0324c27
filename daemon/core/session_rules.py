"""Rules that find problems of a session, apart from its runs, in the order in which they are applied.

The rules themselves lie beside: `session_file_rules.py`, `session_container_rules.py`, `session_message_rules.py`. Pure.
"""

from __future__ import annotations

from typing import Final

from daemon.core.session_container_rules import (
    budget_spent,
    container_gone,
    container_restarted,
    hot_journal,
    orphaned_container,
    paused,
    restart_policy,
    spawn_failing,
    unclaimed,
    work_waiting,
    work_without_agent,
)
from daemon.core.session_file_rules import failing, files_unreadable, nearly_full, quarantined, too_new, unregistered
from daemon.core.session_finding import SessionRule
from daemon.core.session_message_rules import (
    answer_retrying,
    answers_held_back,
    dead_letters,
    delivery_stuck,
    held_back,
    message_retrying,
    question_open,
    schedule_failing,
    schedule_zone,
)

# For each aspect of a session, its rules: the first that matches makes the finding.
SESSION: Final[tuple[tuple[SessionRule, ...], ...]] = (
    (quarantined, too_new, files_unreadable, unregistered),
    (failing,),
    (nearly_full,),
    (orphaned_container, container_gone, container_restarted, hot_journal),
    (restart_policy, paused),
    (work_without_agent, spawn_failing, budget_spent, work_waiting, unclaimed),
    (held_back, message_retrying),
    (delivery_stuck, answers_held_back, answer_retrying),
    (question_open,),
    (schedule_failing,),
    (schedule_zone,),
    (dead_letters,),
)

# What explains a session's state, the most pressing first: what keeps its next message waiting, and what delays nothing.
BLOCKING: Final[tuple[SessionRule, ...]] = (
    *(quarantined, too_new, files_unreadable),
    *(work_without_agent, budget_spent, spawn_failing, unclaimed, held_back),
)
PASSABLE: Final[tuple[SessionRule, ...]] = (
    message_retrying,
    answer_retrying,
    question_open,
    schedule_failing,
    schedule_zone,
    dead_letters,
)
