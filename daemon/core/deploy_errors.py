"""The errors of releases, slots and deploys. Each class has a stable code and the operator's next step."""

from __future__ import annotations

from typing import Final

from schema.errors import ClawbusError

EXIT_CONFIG: Final = 78  # sysexits.h EX_CONFIG: nothing was started
EXIT_FENCED: Final = 75  # sysexits.h EX_TEMPFAIL: another slot serves


class ReleasesUnusedError(ClawbusError):
    """The command needs releases, and deploy.root names no folder for them. Nothing was changed."""

    code = "RELEASES_UNUSED"
    default_hint = "Set deploy.root in clawbus.toml to the folder for releases, such as /opt/clawbus (docs/deploys.md)."


class UnknownReleaseError(ClawbusError):
    """No release, or more than one, has this id."""

    code = "UNKNOWN_RELEASE"
    default_hint = "`clawbus release list` lists them; `clawbus release make` makes one."


class ReleaseInvalidError(ClawbusError):
    """A release's release.json is missing, cannot be read, or was edited: its id is not the digest of its content."""

    code = "RELEASE_INVALID"
    default_hint = "Make the release again (`clawbus release make`), and remove the folder that is named."


class ReleaseMakeError(ClawbusError):
    """A release could not be made. What was begun is removed, and no release has changed."""

    code = "RELEASE_MAKE"
    default_hint = "Correct what the message names, then run `clawbus release make` again."


class SourceOutsideError(ClawbusError):
    """Releases are used here, and this process was not started from one. Nothing was started."""

    code = "SOURCE_OUTSIDE_RELEASE"
    default_hint = "Start it through a slot (`systemctl start clawbus@blue`), or for development with --developer."


class SourceDriftError(ClawbusError):
    """What runs or would run is not exactly one source: the message names each difference."""

    code = "SOURCE_DRIFT"
    default_hint = "`clawbus source` lists each difference; `clawbus source --repair` repairs what does not serve."
