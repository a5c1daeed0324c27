"""One question to an Inngest file: the rows of the runs that are asked about, whatever form their ids have there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from sqlite3 import Row

from daemon.inngest.values import run_key
from schema.frozen import frozen
from schema.handles import Reader


@frozen
class Asked:
    """One question's runs: the ids in every form, and how a row's id is brought back to its run."""

    reader: Reader
    forms: tuple[object, ...]
    marks: str

    def rows(self, sql: str) -> Iterator[tuple[str, Row]]:
        """Yield the rows of a query with `{ids}` in it, each with its run's key."""
        for row in self.reader.all(sql.format(ids=self.marks), self.forms):
            key = run_key(row["run_id"])
            if key is not None:
                yield key, row

    def grouped(self, sql: str) -> dict[str, list[Row]]:
        """Return the rows of `rows`, grouped by run."""
        found: dict[str, list[Row]] = defaultdict(list)
        for key, row in self.rows(sql):
            found[key].append(row)
        return found
