"""The errors of releases, slots and deploys. Each class has a stable code and the operator's next step."""

from __future__ import annotations

from typing import Final

from schema.errors import ClawbusError

EXIT_CONFIG: Final = 78  # sysexits.h EX_CONFIG: nothing was started
EXIT_FENCED: Final = 75  # sysexits.h EX_TEMPFAIL: another slot serves


class ReleasesUnusedError(ClawbusError):
    """The command needs releases, and deploy.root is not set. Nothing was changed."""

    code = "RELEASES_UNUSED"
    default_hint = "Set deploy.root in clawbus.toml to the folder for releases, such as /opt/clawbus (docs/deploys.md)."


class UnknownReleaseError(ClawbusError):
    """No release, or more than one, has this id."""

    code = "UNKNOWN_RELEASE"
    default_hint = "`clawbus release list` lists them; `clawbus release make` makes one."


class ReleaseInvalidError(ClawbusError):
    """A release's release.json is missing, unreadable or edited: its id is not the digest of its content."""

    code = "RELEASE_INVALID"
    default_hint = "Remove the named folder and run `clawbus release make` again."


class ReleaseMakeError(ClawbusError):
    """A release could not be made. What was begun is removed."""

    code = "RELEASE_MAKE"
    default_hint = "Correct what the message names, then run `clawbus release make` again."


class SourceOutsideError(ClawbusError):
    """Releases are in use, and this process was not started from one. Nothing was started."""

    code = "SOURCE_OUTSIDE_RELEASE"
    default_hint = "Start it through a slot (`systemctl start clawbus@blue`), or for development with --developer."


class SourceDriftError(ClawbusError):
    """What runs or would run is not one source; the message names each difference."""

    code = "SOURCE_DRIFT"
    default_hint = "`clawbus source --repair` repairs what does not serve."


class SourceUnknownError(ClawbusError):
    """Nothing differs in what could be checked, but not everything could: the message says what. This is not a pass."""

    code = "SOURCE_UNKNOWN"
    default_hint = "Make what is named reachable (`clawbus doctor` shows it), then repeat the command."


class NotServingError(ClawbusError):
    """The slot does not serve, so it may not take the data folder. Nothing was changed."""

    code = "NOT_SERVING"
    default_hint = "`clawbus deploy status` says which slot serves; the standby waits by itself."


class SlotStateError(ClawbusError):
    """deploy/state.json cannot be read, so the serving slot is unknown. Nothing was started."""

    code = "SLOT_STATE"
    default_hint = (
        "Move the file away (`clawbus doctor` has the command): the slot that served last goes on and writes a new one."
    )


class FencedError(ClawbusError):
    """Another slot's daemon has taken over with a higher epoch. This one claims nothing and ends with 75."""

    code = "FENCED"
    default_hint = "Nothing to do; `clawbus deploy status` names the slot that serves."


class DuplicateOwnershipError(ClawbusError):
    """An agent or a channel has two owners: two groups, two registered daemons, or a daemon of each role on this host."""

    code = "DUPLICATE_OWNERSHIP"
    default_hint = "Leave it in one group of [ownership]; `clawbus worker list` shows who is registered for what."


class DeployRefusedError(ClawbusError):
    """A deploy cannot begin, or cannot be aborted or rolled back now. Nothing was changed."""

    code = "DEPLOY_STATE"
    default_hint = "`clawbus deploy status` says which slot serves and how the last deploy stands."


class DeployRunningError(DeployRefusedError):
    """Another deploy is under way."""

    code = "DEPLOY_RUNNING"
    default_hint = "`clawbus deploy status` shows it; `clawbus deploy abort` ends it before its cutover."


class DeployCooldownError(DeployRefusedError):
    """The release was rolled back recently and is refused for a while."""

    code = "DEPLOY_COOLDOWN"
    default_hint = "Wait, deploy another release, or repeat the command with --force."


class DeployFailedError(ClawbusError):
    """A deploy failed at the gate that the message names, or a standing condition does not hold."""

    code = "DEPLOY_FAILED"
    default_hint = "Correct what is named, then deploy a new release; the one that served before goes on."


class DeployRolledBackError(DeployFailedError):
    """A deploy was rolled back after its cutover. The prior release serves; no message is lost."""

    code = "DEPLOY_ROLLED_BACK"
