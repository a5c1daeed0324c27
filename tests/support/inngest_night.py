"""A night's database, in both of SQLite's journal modes that Inngest has used."""

from pathlib import Path

import pytest

from tests.support.inngest_db import Night, the_night


@pytest.fixture(params=["wal", "delete"])
def night(request: pytest.FixtureRequest, tmp_path: Path) -> Night:
    return the_night(tmp_path / "main.db", wal=request.param == "wal")
