"""What our network does to httpcore: it finds its async library without searching for one that is not installed."""

import importlib.util
import sys

import anyio
import pytest
from httpcore._synchronization import AsyncLock

from daemon.http.pool import disable_sniffio


@pytest.mark.anyio
async def test_a_missing_sniffio_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    installed = importlib.util.find_spec("sniffio") is not None
    for _ in range(2):
        disable_sniffio()
        assert ("sniffio" in sys.modules and sys.modules["sniffio"] is None) is not installed
    async with AsyncLock():  # httpcore's own: it takes asyncio
        await anyio.lowlevel.checkpoint()
