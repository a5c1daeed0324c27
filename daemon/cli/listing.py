"""Renders rows under a title in the terminal's width: as a table if all words fit, else as one record per row.

An id broken over two lines cannot be copied, and prose in a narrow column cannot be read. So a table never breaks a word;
if the words do not fit, each row becomes lines of name and value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.cli.colours import state_style
from daemon.core.printable import one_line

_PROSE: Final = 24  # the least width of a column with prose, in cells, unless it needs less
_INDENT: Final = 4
_EMPTY: Final = frozenset({"", "-"})


class Listing:
    """A renderable for rich. It prints every title, name and cell as one line of text, whatever it contains."""

    def __init__(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self._title = one_line(title)
        self._columns = tuple(columns)
        self._rows = [[one_line("-" if cell is None else cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        widths = column_widths(self._columns, self._rows, options.max_width) if self._rows else None
        if widths is None:  # without rows the title says all
            yield from self._records(options.max_width)
        else:
            yield self._table(widths)

    def _table(self, widths: Sequence[int]) -> Table:
        made = Table(title=Text(self._title), title_justify="left")
        for column, width in zip(self._columns, widths, strict=True):
            made.add_column(column, overflow="fold", width=width)
        for row in self._rows:
            cells = zip(self._columns, row, strict=True)
            made.add_row(*(Text(cell, style=state_style(column, cell)) for column, cell in cells))
        return made

    def _records(self, width: int) -> Iterator[Text]:
        yield from named_lines("", self._title, width)
        label = max(map(len, self._columns))
        for row in self._rows:
            yield Text("")
            for column, cell in zip(self._columns, row, strict=True):
                if cell not in _EMPTY:
                    for line in named_lines(f"  {column:<{label}}  ", cell, width):
                        line.stylize(state_style(column, cell), label + _INDENT)
                        yield line


def column_widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Return the columns' widths in a table of at most `width` cells, or None if a word would have to be broken.

    Spare width goes to the columns that need more, those with the smallest need first.
    """
    cells = list(zip(columns, *rows, strict=True))
    wanted = [max(map(cell_len, column)) for column in cells]
    made = [
        max(longest_word(column), min(most, _PROSE if any(" " in cell for cell in column[1:]) else 0))
        for column, most in zip(cells, wanted, strict=True)
    ]
    spare = width - sum(made) - 3 * len(columns) - 1  # a border and two spaces a column, and the last border
    if spare < 0:
        return None
    short = sorted((want - have, at) for at, (want, have) in enumerate(zip(wanted, made, strict=True)))
    for left, (need, at) in zip(range(len(short), 0, -1), short, strict=True):
        given = min(need, spare // left)
        made[at] += given
        spare -= given
    return made


def longest_word(texts: Sequence[str]) -> int:
    """Return the width of the longest word of the texts, in cells."""
    return max((cell_len(word) for text in texts for word in text.split()), default=1)


def named_lines(name: str, value: str, width: int, *, fold: bool = True) -> Iterator[Text]:
    """Yield `name` and `value` in lines of at most `width` cells. Start a new line for a word that does not fit after the name.

    `fold`: break words that are wider than a line. Otherwise leave them whole, so that a path can be copied.
    """
    indent = cell_len(name)
    if longest_word([value]) > width - indent and indent > _INDENT:
        yield Text(name.rstrip())
        name, indent = " " * _INDENT, _INDENT
    for line in _wrapped(value, max(2, width - indent), fold=fold):
        yield Text((name + line).rstrip())
        name = " " * indent


def _wrapped(text: str, width: int, *, fold: bool) -> Iterator[str]:
    """Yield the text in lines of at most `width` cells. Without `fold`, a wider word gets a longer line."""
    line: str | None = None
    for word in text.split(" "):
        pieces = chop_cells(word, width) if fold and cell_len(word) > width else [word]
        for at, piece in enumerate(pieces):
            if line is None:
                line = piece
            elif at == 0 and cell_len(line) + 1 + cell_len(piece) <= width:
                line += f" {piece}"
            else:
                yield line
                line = piece
    yield line or ""
