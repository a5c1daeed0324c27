"""Reads what the two slots of a folder show: their record, and whether the standby answers."""

from __future__ import annotations

from daemon.config.models import Config
from daemon.core.deploy_errors import SlotStateError
from daemon.core.facts import SlotFacts
from daemon.core.release import SHORT
from daemon.core.slots import other
from daemon.deploy.releases import Releases
from daemon.deploy.standby_client import StandbyClient
from daemon.deploy.state_file import read_state
from schema.errors import StorageError


def slot_facts(config: Config) -> SlotFacts:
    """Return the facts about the slots; empty ones where none are used, or this host cannot tell now."""
    try:
        state = read_state(config.data_dir)
    except SlotStateError as error:
        # A file that is whole and cannot be read now, or not by this user, must not be moved away.
        return SlotFacts() if isinstance(error.__cause__, OSError) else SlotFacts(error=str(error))
    if state.serving is None or not config.deploy.root:
        return SlotFacts(serving=state.serving)
    release = (state.release or "")[:SHORT]
    try:
        return _links(config, state.serving, release)
    except (StorageError, OSError):
        return SlotFacts(serving=state.serving)


def _links(config: Config, serving: str, release: str) -> SlotFacts:
    """Compare the two links with the releases that are there. Raise StorageError or OSError."""
    releases, standby = Releases(config.deploy.root), other(serving)
    linked = releases.slots()
    absent = standby if standby in linked and StandbyClient(config.data_dir, standby).look() is None else None
    if releases.starts(serving):
        return SlotFacts(absent=absent, release=release, serving=serving)
    usable = [one.short for one in releases.list() if one.fault is None]
    instead = next((one for one in (release, linked.get(standby), *usable) if one in usable), "")
    return SlotFacts(absent=absent, release=release, stuck=serving, instead=instead, serving=serving)
