"""Every operator's verb: the list that the control API serves.

`verb.py` says what a verb is. To add one: define it in the file of its noun, add it here, to both executors, and to the
command line.
"""

from __future__ import annotations

from typing import Final

from daemon.core.agent_verbs import AddRoute, RefillBudget, RemoveRoute
from daemon.core.message_verbs import (
    AnswerQuestion,
    CancelMessage,
    DropAnswer,
    DropDead,
    RequeueDead,
    RetryAnswer,
    RetryMessage,
)
from daemon.core.people_verbs import AddUser, BindUser, DecidePairing, RestoreUser, RevokeUser, SetRole
from daemon.core.schedule_verbs import CancelSchedule, PauseSchedule, PutSchedule, ResumeSchedule, RunSchedule
from daemon.core.session_verbs import (
    ApplyStale,
    DeleteSession,
    KillSession,
    PreviewStale,
    QuarantineSession,
    ReleaseSession,
    ResetSession,
    StopSession,
    UndoStale,
)
from daemon.core.verb import AnyVerb

VERBS: Final[tuple[type[AnyVerb], ...]] = (
    RequeueDead,
    DropDead,
    CancelMessage,
    RetryMessage,
    RetryAnswer,
    DropAnswer,
    AnswerQuestion,
    PutSchedule,
    PauseSchedule,
    ResumeSchedule,
    CancelSchedule,
    RunSchedule,
    StopSession,
    KillSession,
    ReleaseSession,
    QuarantineSession,
    ResetSession,
    DeleteSession,
    PreviewStale,
    ApplyStale,
    UndoStale,
    AddRoute,
    RemoveRoute,
    RefillBudget,
    AddUser,
    BindUser,
    SetRole,
    RevokeUser,
    RestoreUser,
    DecidePairing,
)
