"""The errors of the Inngest commands. Each class has a code and the next step, and states what was not changed."""

from __future__ import annotations

from schema.errors import ClawbusError


class InngestDbMissingError(ClawbusError):
    """The file does not exist or cannot be opened. Nothing was changed."""

    code = "INNGEST_DB_MISSING"
    default_hint = "Name the server's main.db with --db (`inngest start --sqlite-dir` says where)."


class InngestDbForeignError(ClawbusError):
    """The file is not an Inngest database. Nothing was changed."""

    code = "INNGEST_DB_FOREIGN"
    default_hint = "Name the server's main.db with --db."


class InngestDbVersionError(ClawbusError):
    """The database is of an unknown version of Inngest: columns are missing. Nothing was changed."""

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
    """The database has no such run."""

    code = "INNGEST_RUN_UNKNOWN"
    default_hint = "`clawbus inngest runs` lists the runs; a run's id is a ULID of 26 characters."


class SweepQueryFailedError(ClawbusError):
    """A query failed for another reason. Nothing was changed."""

    code = "SWEEP_SQL_QUERY_FAILED"
    default_hint = "Read the message; if it is about the schema, report it with the server's version."


class InvalidSweepScopeError(ClawbusError):
    """The scope is empty, or names something that does not exist. Nothing was changed."""

    code = "INVALID_SWEEP_SCOPE"
    default_hint = (
        "Name functions with --functions as `clawbus inngest runs` shows them; runs with --exclude by their whole id."
    )


class SweepAgeTooYoungError(ClawbusError):
    """The age limit is so low that healthy runs would be swept. Nothing was changed."""

    code = "SWEEP_AGE_TOO_YOUNG"
    default_hint = "Give --older-than at least 5m; 30m is the default."


class SweepScopeTooBroadError(ClawbusError):
    """The sweep exceeds --max, or its patterns take in every function. Nothing was changed."""

    code = "SWEEP_SCOPE_TOO_BROAD"
    default_hint = "Narrow --functions or raise --older-than; raise --max only after reading the preview."


class SweepMissingFunctionRunsError(ClawbusError):
    """A candidate has no function_runs row, so its history cannot be written. Nothing was changed."""

    code = "SWEEP_INVARIANT_MISSING_FUNCTION_RUNS"
    default_hint = "Read `clawbus inngest run ID`, then leave it out with --exclude ID."


class SweepServerRunningError(ClawbusError):
    """A process has the database open and may revive what is swept. Nothing was changed."""

    code = "SWEEP_SERVER_RUNNING"
    default_hint = "Stop the Inngest server and repeat. --while-running sweeps a file in WAL mode anyway."


class SweepServerWouldLoseWritesError(ClawbusError):
    """A process has the database open in DELETE mode and would lose commits during the sweep. Nothing was changed."""

    code = "SWEEP_SERVER_WOULD_LOSE_WRITES"
    default_hint = (
        "Stop the Inngest server and repeat. To read and sweep beside it later: stop it, run `sqlite3 FILE 'PRAGMA"
        " journal_mode=WAL'`, start it; it keeps that mode."
    )


class SweepQueueAliveError(ClawbusError):
    """The server's queue in Redis may still hold candidates, which would go on. Nothing was changed."""

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
    """The backup is not a sound copy of the database. Nothing was changed."""

    code = "SWEEP_BACKUP_VERIFY_FAILED"
    default_hint = "Run `PRAGMA integrity_check` on the database and check the disk (`dmesg`) first."


class SweepDatabaseChangedError(ClawbusError):
    """The database changed between the backup and the sweep. Nothing was changed."""

    code = "SWEEP_DATABASE_CHANGED"
    default_hint = "Stop the Inngest server, check the preview again, and repeat."


class SweepApplyFailedError(ClawbusError):
    """The sweep's transaction failed and was rolled back. Nothing was changed."""

    code = "SWEEP_APPLY_FAILED"
    default_hint = "Repair what the message names (room, a lock, permissions), then repeat; the backup stays."


class SweepNotVerifiedError(ClawbusError):
    """The sweep is committed, but its verification found something wrong. The backup has the state before it."""

    code = "SWEEP_NOT_VERIFIED"
    default_hint = (
        "Stop the server and check the named runs with `clawbus inngest run ID`; the backup's path is in the result."
    )


class InngestExecError(ClawbusError):
    """The command of --exec failed or did not answer. A sweep may have been done: check."""

    code = "INNGEST_EXEC_FAILED"
    default_hint = "Try it by hand: `COMMAND python3 -V` must work there (Python 3.11 or later), with its standard input passed on."


class InngestCanaryError(ClawbusError):
    """The canary event was refused, or none of its runs completed in time."""

    code = "INNGEST_CANARY_FAILED"
    default_hint = "Check that the server is up, the event's function registered, and its application answering."
