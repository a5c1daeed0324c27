"""What the Inngest commands refuse or fail at. Each class has a code and the next step, and says what was not changed."""

from __future__ import annotations

from schema.errors import ClawbusError


class InngestDbMissingError(ClawbusError):
    """There is no such file, or it cannot be opened. Nothing was changed."""

    code = "INNGEST_DB_MISSING"
    default_hint = "Name the server's main.db with --db (`inngest start --sqlite-dir` says where)."


class InngestDbForeignError(ClawbusError):
    """The file is no Inngest database. Nothing was changed."""

    code = "INNGEST_DB_FOREIGN"
    default_hint = (
        "Name the server's main.db with --db; it has the tables functions, function_runs, history and trace_runs."
    )


class InngestDbVersionError(ClawbusError):
    """An Inngest database of a version that this clawbus does not know: columns are missing. Nothing was changed."""

    code = "INNGEST_DB_VERSION"
    default_hint = "Let the server migrate its file (start it once), or use a clawbus that knows this version."


class InngestDbLockedError(ClawbusError):
    """Another process held the file's lock for the whole busy time-out. Nothing was changed."""

    code = "INNGEST_DB_LOCKED"
    default_hint = "Stop the Inngest server, find other holders (`fuser FILE`), and repeat."


class InngestDbCorruptError(ClawbusError):
    """The file is damaged. Nothing was changed."""

    code = "INNGEST_DB_CORRUPT"
    default_hint = "Check the disk (`dmesg`), and restore a backup, or recover the file with `sqlite3 FILE .recover`."


class InngestRunUnknownError(ClawbusError):
    """The database knows no such run."""

    code = "INNGEST_RUN_UNKNOWN"
    default_hint = "`clawbus inngest runs` lists the runs; a run's id is a ULID of 26 characters."


class SweepQueryFailedError(ClawbusError):
    """A query failed for another reason. Nothing was changed."""

    code = "SWEEP_SQL_QUERY_FAILED"
    default_hint = "Read the message; if it is about the schema, report it with the server's version."


class InvalidSweepScopeError(ClawbusError):
    """A scope that names nothing, or something that is not there. Nothing was changed."""

    code = "INVALID_SWEEP_SCOPE"
    default_hint = (
        "Name functions with --functions as `clawbus inngest runs` shows them; runs with --exclude by their whole id."
    )


class SweepAgeTooYoungError(ClawbusError):
    """The age limit is so low that healthy runs would be swept. Nothing was changed."""

    code = "SWEEP_AGE_TOO_YOUNG"
    default_hint = "Give --older-than at least 5m; 30m is the default."


class SweepScopeTooBroadError(ClawbusError):
    """More would be swept than the cap allows, or patterns take in every function there is. Nothing was changed."""

    code = "SWEEP_SCOPE_TOO_BROAD"
    default_hint = "Narrow --functions or raise --older-than; raise --max only after reading the preview."


class SweepMissingFunctionRunsError(ClawbusError):
    """A candidate has no function_runs row, so no history of it can be written. Nothing was changed."""

    code = "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    default_hint = "Look at it with `clawbus inngest run ID`, then leave it out with --exclude ID."


class SweepServerRunningError(ClawbusError):
    """A process has the database open: a live server may revive what is swept. Nothing was changed."""

    code = "SWEEP_SERVER_RUNNING"
    default_hint = "Stop the Inngest server and repeat. With --while-running a file in WAL mode is swept all the same."


class SweepServerWouldLoseWritesError(ClawbusError):
    """A process has the database open in DELETE mode: each of its commits that met the sweep's lock would be lost. Nothing was changed."""

    code = "SWEEP_SERVER_WOULD_LOSE_WRITES"
    default_hint = (
        "Stop the Inngest server and repeat. To read and sweep beside it later: stop it, run `sqlite3 FILE 'PRAGMA"
        " journal_mode=WAL'`, start it; it keeps that mode."
    )


class SweepQueueAliveError(ClawbusError):
    """The server's queue is in Redis and may still hold candidates: they would go on after the sweep. Nothing was changed."""

    code = "SWEEP_QUEUE_ALIVE"
    default_hint = (
        "Start the server and let it finish these runs, or cancel them through its API, then stop it and sweep what is left."
        " --redis-uri URI looks into Redis; --queue-lost says that what was queued there is gone."
    )


class SweepBackupFailedError(ClawbusError):
    """The backup could not be written. Nothing was changed."""

    code = "SWEEP_BACKUP_FAILED"
    default_hint = "Make room beside the database (`df`), check permissions, and repeat."


class SweepBackupNotVerifiedError(ClawbusError):
    """The backup is no sound copy of the database. Nothing was changed."""

    code = "SWEEP_BACKUP_VERIFY_FAILED"
    default_hint = (
        "Run `PRAGMA integrity_check` on the database itself and check the disk (`dmesg`) before anything else."
    )


class SweepDatabaseChangedError(ClawbusError):
    """Somebody wrote into the database between the backup and the sweep's own transaction. Nothing was changed."""

    code = "SWEEP_DATABASE_CHANGED"
    default_hint = "Stop the Inngest server, check the preview again, and repeat."


class SweepApplyFailedError(ClawbusError):
    """The sweep's transaction failed and was rolled back. Nothing was changed."""

    code = "SWEEP_APPLY_FAILED"
    default_hint = "Mend what the message names (room, a lock, permissions), then repeat; the backup stays."


class SweepNotVerifiedError(ClawbusError):
    """The sweep is committed, but what it left is not what it should be. The backup has the state before it."""

    code = "SWEEP_NOT_VERIFIED"
    default_hint = (
        "Stop the server and check the named runs with `clawbus inngest run ID`; the backup's path is in the result."
    )


class InngestExecError(ClawbusError):
    """The command of --exec could not be run, or what it ran did not answer. A sweep may have been done: look again."""

    code = "INNGEST_EXEC_FAILED"
    default_hint = "Try it by hand: `COMMAND python3 -V` must work there (Python 3.11 or later), with its standard input passed on."


class InngestCanaryError(ClawbusError):
    """The canary event was not accepted, or no run of it completed in time."""

    code = "INNGEST_CANARY_FAILED"
    default_hint = (
        "Check that the server is up, that the event's function is registered, and that its application answers."
    )
