"""Reads deploy/state.json of a data folder, and replaces it atomically. Only the daemon with the folder's lock replaces it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from daemon.core.deploy_errors import SlotStateError
from daemon.core.slots import STATE_FILE, Deploy, SlotState, as_json, from_json
from schema.durable_files import sync_folder
from schema.os_faults import hint_of, read_own_file

FOLDER, _, NAME = STATE_FILE.rpartition("/")
_MAX: Final = 1024**2
_STOPPED: Final = "stopped-"


def state_path(data_dir: Path) -> Path:
    """Return the file's path."""
    return data_dir / FOLDER / NAME


def read_state(data_dir: Path) -> SlotState:
    """Return the state; an empty one where no slot has ever served. Raise SlotStateError."""
    path = state_path(data_dir)
    try:
        loaded: object = json.loads(read_own_file(path, _MAX))
        if not isinstance(loaded, dict):
            raise SlotStateError(f"{path} is not a JSON object.")
        return _with_mark(data_dir, from_json(cast("dict[str, Any]", loaded)))
    except FileNotFoundError:
        return SlotState()
    except OSError as error:
        raise SlotStateError(
            f"{path} cannot be read: {error.strerror}.", hint=_access_hint(error) or hint_of(error.errno or 0)
        ) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise SlotStateError(f"{path} holds no state of slots: {error}.") from error


def write_state(data_dir: Path, state: SlotState) -> None:
    """Replace the file and wait until that is on disk. Raise SlotStateError; the former state is then unchanged."""
    path = state_path(data_dir)
    fresh = path.with_name(f"{NAME}.new")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(as_json(state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
        for mark in path.parent.glob(f"{_STOPPED}*"):
            mark.unlink(missing_ok=True)
    except OSError as error:
        hint = _access_hint(error) or "Make room, then repeat."
        raise SlotStateError(f"{path} cannot be written: {error.strerror}.", hint=hint) from error


def mark_stopped(data_dir: Path, deploy: Deploy) -> None:
    """Record an orderly stop where a state has no room: an empty file needs none. Raise OSError."""
    _mark(data_dir, deploy).touch(mode=0o600)


def is_unmarked(data_dir: Path, found: SlotState, wanted: SlotState) -> bool:
    """Remove the mark of a stop where that alone makes `wanted` of the state `found`; return whether it did."""
    deploy = found.active
    if deploy is None or replace(found, deploy=replace(deploy, stopped=False)) != wanted:
        return False
    try:
        _mark(data_dir, deploy).unlink()
    except OSError:  # the caller writes the state then, and says why that cannot be done
        return False
    return True


def _mark(data_dir: Path, deploy: Deploy) -> Path:
    return state_path(data_dir).with_name(f"{_STOPPED}{deploy.id}")


def _with_mark(data_dir: Path, state: SlotState) -> SlotState:
    deploy = state.active
    if deploy is None or not _mark(data_dir, deploy).exists():
        return state
    return replace(state, deploy=replace(deploy, stopped=True))


def _access_hint(error: OSError) -> str | None:
    """Return what to do where the file is whole and only this user may not have it; None for anything else."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    return (
        "Run the command as root or as the daemon's user. A daemon: give its user the data folder (`doctor` says how)."
    )
