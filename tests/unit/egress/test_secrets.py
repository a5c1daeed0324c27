"""A route's secret is what its file holds now, and is read only where the file may have changed."""

import time
from pathlib import Path

import pytest

from daemon.config.secret_files import read_secret_file
from daemon.egress import secrets
from daemon.egress.refusals import SecretUnavailableError
from daemon.egress.rules import Secret
from daemon.egress.secrets import Secrets
from tests.support.clock import MovedClock

AHEAD_MS = 60_000


@pytest.mark.anyio
@pytest.mark.parametrize("settled", [True, False])
async def test_every_change_is_seen_at_the_next_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    reads: list[Path] = []

    def reading(path: Path) -> str:
        reads.append(path)
        return read_secret_file(path)

    monkeypatch.setattr(secrets, "read_secret_file", reading)
    path = tmp_path / "key"
    path.write_text("first\n")
    kept = Secrets(MovedClock(time.time_ns() // 1_000_000 + (AHEAD_MS if settled else 0)))
    secret = Secret(b"authorization", "Bearer {secret}", path)
    for _ in range(3):
        assert await kept.header(secret) == (b"authorization", b"Bearer first")
    assert len(reads) == (1 if settled else 3)  # a file that has just changed may change again with the same times
    path.write_text("other\n")
    assert await kept.header(secret) == (b"authorization", b"Bearer other")
    path.chmod(0o640)
    await kept.header(secret)
    assert len(reads) == (3 if settled else 5)
    (tmp_path / "new").write_text("moved")
    (tmp_path / "new").rename(path)
    assert await kept.header(secret) == (b"authorization", b"Bearer moved")
    path.unlink()
    with pytest.raises(SecretUnavailableError):
        await kept.header(secret)
