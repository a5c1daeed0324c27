"""The providers by name. A new one is a file here and a line in PROVIDERS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from container_runner.providers.acp.provider import AcpProvider
from container_runner.providers.command import CommandProvider
from container_runner.providers.echo import EchoProvider
from container_runner.providers.long_lived import LongLivedProvider
from container_runner.providers.protocol import Provider, ProviderContext


def command_provider(context: ProviderContext) -> Provider:
    """Return the provider `command` in the form that the agent's `lifetime` names."""
    return LongLivedProvider(context) if context.settings.lifetime == "container" else CommandProvider(context)


PROVIDERS: Final[Mapping[str, Callable[[ProviderContext], Provider]]] = MappingProxyType(
    {"echo": EchoProvider, "command": command_provider, "acp": AcpProvider}
)
