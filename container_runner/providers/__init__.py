"""The providers by name. A new one is a file here and a line in PROVIDERS.

A provider is imported when it is built: a container starts sooner without those that its agent does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from container_runner.providers.protocol import Provider, ProviderContext


def _echo(context: ProviderContext) -> Provider:
    from container_runner.providers.echo import EchoProvider  # noqa: PLC0415

    return EchoProvider(context)


def _command(context: ProviderContext) -> Provider:
    """Return the provider `command` in the form that the agent's `lifetime` names."""
    if context.settings.lifetime == "container":
        from container_runner.providers.long_lived import LongLivedProvider  # noqa: PLC0415

        return LongLivedProvider(context)
    from container_runner.providers.command import CommandProvider  # noqa: PLC0415

    return CommandProvider(context)


def _acp(context: ProviderContext) -> Provider:
    from container_runner.providers.acp.provider import AcpProvider  # noqa: PLC0415

    return AcpProvider(context)


PROVIDERS: Final[Mapping[str, Callable[[ProviderContext], Provider]]] = MappingProxyType(
    {"echo": _echo, "command": _command, "acp": _acp}
)
