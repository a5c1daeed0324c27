"""`clawbus image build|show`: the image that agents' containers run."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.command import add, add_group
from daemon.cli.envelope import NextAction, Outcome, Problem
from daemon.cli.invocation import Invocation
from daemon.cli.output import progress
from daemon.core.command_words import restart_command, start_command
from daemon.core.errors import ImageError

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.runtimes.agent_images import AgentImage


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Build the agents' image, or see whether it is the right one.\n\n\b\nExample:\n  clawbus image build",
        rich_markup_mode=None,
    )
    add(group, "build", build, path="image")
    add(group, "show", show, path="image")
    add_group(app, group, "image")


def build(
    invocation: Invocation,
    base: Annotated[
        str | None, typer.Option("--base", metavar="IMAGE", help="The image to build on. Default: python:3.13-slim.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="NAME", help="The new image's name. Default: docker.image.")
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Take the locked wheels from this folder.")
    ] = None,
) -> Outcome:
    """Build the agents' image from the installed source and the locked wheels.

    Use it once after an installation and after every upgrade: the daemon runs no image that was built from another
    source than its own. An image that is not clawbus's loses its name only to --tag. The build itself needs no network; give --wheels where there is none at all.

    \b
    Example:
      clawbus image build --base python:3.13-slim
    """
    from daemon.config.policies import engine_of  # noqa: PLC0415
    from daemon.runtimes.docker_image import ImageBuilder  # noqa: PLC0415 - the Docker client
    from daemon.runtimes.image_build import DEFAULT_BASE, build_image  # noqa: PLC0415

    engine, url = engine_of(invocation.config)
    with closing(ImageBuilder(base_url=url, engine=engine)) as builder:
        built = build_image(
            builder,
            cache=_wheel_cache(),
            base=base or DEFAULT_BASE,
            tag=tag or invocation.config.docker.image,
            wheels=wheels.absolute() if wheels is not None else None,
            replace_foreign=tag is not None,
            progress=_tell,
        )
    result = asdict(built)

    def people(console: Console) -> None:
        from daemon.cli.present import pairs  # noqa: PLC0415

        pairs(console, result)

    return Outcome(result, people, (_after_build(invocation),))


def _after_build(invocation: Invocation) -> NextAction:
    """Return the next step for this host.

    A daemon that is already running may still run the old source, and a second daemon on the same data folder is refused.
    """
    from daemon.store.folder_lock import live_holder  # noqa: PLC0415

    if live_holder(invocation.config.data_dir) is None:
        return NextAction(start_command(None), "start the daemon with it")
    if invocation.unit is not None:
        return NextAction(restart_command(invocation.unit, None), "restart the daemon to use it; agents keep running")
    return NextAction("clawbus doctor", "see whether the daemon that runs accepts it")


def show(invocation: Invocation) -> Outcome:
    """Say for each image of the configuration whether the daemon would run it, and why not.

    Use it when a spawn fails with IMAGE_UNUSABLE. The process runtime needs no image.

    \b
    Example:
      clawbus image show
    """
    from daemon.runtimes.agent_images import agent_images  # noqa: PLC0415
    from daemon.runtimes.docker_client import engine_client  # noqa: PLC0415 - the Docker client
    from daemon.runtimes.image_source import source_digest  # noqa: PLC0415

    digest = source_digest()
    if invocation.config.runtime.kind == "process":
        return Outcome({"source_digest": digest, "images": []}, _say_no_images)
    with closing(engine_client(invocation.config)) as client:
        images = [_look(client, image, digest) for image in agent_images(invocation.config)]
    result = {"source_digest": digest, "images": images}
    bad = [one for one in images if one["error"] is not None]

    def people(console: Console) -> None:
        from daemon.cli.present import table  # noqa: PLC0415

        rows = [
            (one["image"], ", ".join(one["keys"]), "yes" if one["error"] is None else "no", one["error"] or one["id"])
            for one in images
        ]
        columns = ("image", "named by", "usable", "id, or why not")
        console.print(table(f"Images for source {digest[:12]}", columns, rows))

    if not bad:
        return Outcome(result, people)
    first = bad[0]
    keys = ", ".join(first["keys"])
    fix = f"Correct {keys} when the name is a slip; or build the image with `{first['build']}`."
    if "is foreign" in first["error"]:
        fix += " The build takes the name away from the image that has it now."
    problem = Problem(ImageError.code, f"{keys}: {first['error']}", fix)
    steps = tuple(NextAction(one["build"], f"build {one['image']}") for one in bad)
    return Outcome(result, people, steps, problem)


def _say_no_images(console: Console) -> None:
    from daemon.cli.present import say  # noqa: PLC0415

    say(console, 'No image is needed: with [runtime] kind = "process" agents run as processes of this host.')


def _look(client: Any, one: AgentImage, digest: str) -> dict[str, Any]:
    from daemon.runtimes.docker_image import usable_image  # noqa: PLC0415

    row: dict[str, Any] = {"image": one.image, "keys": one.keys, "agents": one.agents, "build": one.build}
    try:
        return {**row, "id": usable_image(client, one.image, digest).id, "error": None}
    except ImageError as error:
        return {**row, "id": None, "error": str(error)}


def _wheel_cache() -> Path:
    """Return the user's cache, not the daemon's: building an image needs no access to the data folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "clawbus" / "wheels"


def _tell(step: str) -> None:
    """Print a progress step, where it cannot mix with the JSON envelope."""
    progress(step)
