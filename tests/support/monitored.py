"""A bus that is looked at: its monitoring, scraped and asked as others would."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from prometheus_client.parser import text_string_to_metric_families

from daemon.monitoring.monitoring import Monitoring
from tests.support.bus_kit import BusKit

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """One scrape, parsed by Prometheus's own client."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = list(text_string_to_metric_families(text))
        self.samples: Samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
        self.labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}

    @property
    def names(self) -> set[str]:
        """Every metric by the name under which Prometheus stores it, or for histograms begins it."""
        return {line.split()[2] for line in self.text.splitlines() if line.startswith("# TYPE ")}

    def value(self, name: str, **labels: str) -> float | None:
        """A sample's value; None where there is none."""
        return self.samples.get((f"clawbus_{name}", tuple(sorted(labels.items()))))


class Monitored:
    """The monitoring of a kit's bus. `scrape` reads the files anew each time."""

    def __init__(self, kit: BusKit) -> None:
        self.kit = kit
        self.monitoring = Monitoring(kit.bus.watched(), kit.bus.telemetry)
        self.monitoring.health.started = True

    async def scrape(self, accept: str = "") -> Scraped:
        self.kit.clock.advance(1.0)
        body, _ = await self.monitoring.exporter.render(accept)
        return Scraped(body.decode())


@asynccontextmanager
async def monitored(kit: BusKit) -> AsyncGenerator[Monitored]:
    """While the bus runs."""
    found = Monitored(kit)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.monitoring.exporter.run)
        yield found
        tasks.cancel_scope.cancel()
