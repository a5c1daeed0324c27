"""`clawbus release make|list|show|prune`: environments that never change, each made once from what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.core.clock import SystemClock
from daemon.core.printable import counted

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.deploy.releases import Release, Releases

ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="A release's id, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Make, list and remove releases.\n\n\b\nExample:\n  clawbus release list", rich_markup_mode=None
    )
    add(group, "make", make, path="release")
    add(group, "list", list_, path="release")
    add(group, "show", show, path="release")
    add(group, "link", link, path="release")
    add(group, "prune", prune, path="release")
    add_group(app, group, "release")


def make(invocation: Invocation) -> Outcome:
    """Make a release of the clawbus that runs this command, with the image that its agents start from.

    Use it with a fresh installation in a separate environment, after `image build`. The release is a copy: the
    environment may be removed afterwards. Nothing that runs is touched.

    \b
    Example:
      /tmp/new/bin/clawbus release make
    """
    from daemon.core.release import Manifest  # noqa: PLC0415
    from daemon.deploy.images import images_to_record  # noqa: PLC0415
    from daemon.runtimes.image_source import source_digest  # noqa: PLC0415
    from schema.instants import to_text  # noqa: PLC0415

    releases = _releases(invocation)
    digest = source_digest()
    images = images_to_record(invocation.config, digest)
    draft = Manifest("", "", digest, digest, to_text(SystemClock().now_ms()), images=images)
    made, fresh = releases.make(draft, progress)
    result = {**_as_json(made), "made": fresh}

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, f"{made.short} {'made' if fresh else 'was there already: same files, same images'}")

    return Outcome(result, people, (NextAction(f"clawbus release show {made.short}", "what it holds"),))


def list_(invocation: Invocation) -> Outcome:
    """List the releases, newest first, and the slots that point at them. Every file is checked against its digest.

    Use it to see what runs, and what could run instead.

    \b
    Example:
      clawbus release list
    """
    releases = _releases(invocation)
    found = [releases.checked(one) for one in releases.list()]

    def people(console: Console) -> None:
        from daemon.cli.present import say, table  # noqa: PLC0415

        if not found:
            say(console, f"no release in {releases.folder}")
            return
        rows = [
            (one.short, one.manifest.daemon_version if one.manifest else "-", one.manifest.made_at[:19] if one.manifest else "-",
             ", ".join(one.slots) or "-", one.fault or "ok")
            for one in found
        ]  # fmt: skip
        console.print(table(counted(len(rows), "release"), ("release", "version", "made", "slots", "state"), rows))

    return Outcome({"root": str(releases.root), "releases": [_as_json(one) for one in found]}, people)


def show(invocation: Invocation, release: ReleaseArgument) -> Outcome:
    """Show a release and check every file of it against its digest.

    Use it before a deploy, or when `clawbus source` reports a drift. It fails when a file was changed.

    \b
    Example:
      clawbus release show 3f2a91c0b7de
    """
    releases = _releases(invocation)
    found, manifest = releases.usable(release)
    changes = releases.changes(found, manifest)
    result: dict[str, Any] = {
        **_as_json(found),
        "changes": {"changed": changes.changed, "missing": changes.missing, "added": changes.added},
    }

    def people(console: Console) -> None:
        from daemon.cli.present import pairs  # noqa: PLC0415

        facts = {
            "release": manifest.release, "version": manifest.daemon_version, "python": manifest.python,
            "made": manifest.made_at, "source": manifest.source_digest, "files": manifest.tree_digest,
            **{f"image {name}": identity for name, identity in sorted(manifest.images.items())},
            "slots": ", ".join(found.slots) or "-", "changes": str(changes),
        }  # fmt: skip
        pairs(console, facts)

    problem = None
    if changes:
        problem = Problem(
            "SOURCE_DRIFT",
            f"release {found.short} is not what was installed: {changes}.",
            "Make the release again with `clawbus release make`, and deploy that one.",
        )
    return Outcome(result, people, problem=problem)


def link(
    invocation: Invocation,
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="blue or green.")],
    release: ReleaseArgument,
) -> Outcome:
    """Point a slot at a release, for the first start. Later, `deploy start` does it.

    Use it once, before the first deploy.

    Refused for the slot that serves, because what it is started from next must be what passed the gates; except where
    its release is gone and no daemon runs.

    \b
    Example:
      clawbus release link blue 3f2a91c0b7de
    """
    from daemon.core.deploy_errors import DeployRefusedError  # noqa: PLC0415
    from daemon.core.slot_steps import refuse_second  # noqa: PLC0415
    from daemon.core.slots import SLOTS  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415
    from daemon.store.folder_lock import live_holder  # noqa: PLC0415

    if slot not in SLOTS:
        raise typer.BadParameter(f"{slot} is none of {', '.join(SLOTS)}.")
    releases = _releases(invocation)
    with releases.alone():
        found, _ = releases.usable(release)
        state = read_state(invocation.config.data_dir)
        stuck = state.serving == slot and not releases.starts(slot) and live_holder(invocation.config.data_dir) is None
        if not stuck:
            refuse_second(state)
        if state.serving == slot and not stuck:
            raise DeployRefusedError(f"slot {slot} serves.", hint=f"`clawbus deploy start {found.short}`.")
        releases.link(slot, found)

    def people(console: Console) -> None:
        from daemon.cli.present import say  # noqa: PLC0415

        say(console, f"slot {slot} points at {found.short}")

    return Outcome(
        {"slot": slot, "release": found.short}, people, (NextAction(f"systemctl start clawbus@{slot}", "start it"),)
    )


def prune(
    invocation: Invocation,
    keep: Annotated[int, typer.Option("--keep", min=1, max=1000, help="How many of the newest to keep.")] = 3,
) -> Outcome:
    """Remove old releases. Those of the two slots stay, and so does every one from which a process runs.

    Use it when the disk fills up with environments.

    \b
    Example:
      clawbus release prune --keep 3
    """
    from daemon.core.release import SHORT  # noqa: PLC0415
    from daemon.deploy.state_file import read_state  # noqa: PLC0415
    from daemon.workers.source import origin  # noqa: PLC0415

    releases, own = _releases(invocation), origin()
    with releases.alone():
        serving = read_state(invocation.config.data_dir).release
        removed, kept = releases.prune(keep, [one[:SHORT] for one in (own.release, serving) if one])

    def people(console: Console) -> None:
        from daemon.cli.present import say_wrapped  # noqa: PLC0415

        say_wrapped(console, "removed: ", ", ".join(removed) or "none")
        say_wrapped(console, "kept: ", ", ".join(kept) or "none")

    return Outcome({"removed": removed, "kept": kept}, people)


def _releases(invocation: Invocation) -> Releases:
    from daemon.deploy.releases import Releases  # noqa: PLC0415

    return Releases(invocation.config.deploy.root)


def _as_json(one: Release) -> dict[str, Any]:
    manifest = one.manifest.as_json() if one.manifest is not None else {"release": None}
    return {"id": one.short, **manifest, "path": str(one.path), "slots": list(one.slots), "fault": one.fault}
