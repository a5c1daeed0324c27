"""How a run is told: a table for people, a list for programs. Measures nothing and judges nothing."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Result, missed


def machine(folder: Path) -> str:
    """What the figures belong to: processors, versions, the file system, and the load before the run."""
    return (
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Linux {'.'.join(platform.release().split('.')[:2])},"
        f" Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {file_system(folder)},"
        f" load before {os.getloadavg()[0]:.2f}"
    )


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, place, found, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) > len(best):
            best, kind = place, found
    return kind


def print_result(name: str, result: Result, seconds: float) -> None:
    """One benchmark's table."""
    console = Console(width=max(Console().width, 130), highlight=False)
    table = Table(
        title=f"{name} ({seconds:.0f} s)", title_justify="left", box=None, header_style="bold", padding=(0, 1)
    )
    for column in ("figure", "value", "unit", "floor", "ratio", "target", "met", "spread"):
        table.add_column(column, justify="right" if column in ("value", "floor", "ratio") else "left")
    for figure in result.figures:
        table.add_row(*_cells(figure))
    console.print(table)
    for note in result.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
    if result.noisy is not None:
        console.print(f"  NOISY: {result.noisy}. Take these figures for an order of magnitude.", markup=False)
    console.print()


def _cells(figure: Figure) -> tuple[str, ...]:
    value = figure.note or "not measured" if figure.value is None else number(figure.value)
    met = {True: "yes", False: "NO", None: ""}[figure.met]
    target = figure.target.text(figure.unit) if figure.target is not None else ""
    ratio = f"{figure.ratio:.2f}x" if figure.ratio is not None else ""
    floor = number(figure.floor) if figure.floor is not None else ""
    unit = figure.unit if figure.value is not None else ""
    return figure.name, value, unit, floor, ratio, target, met, figure.spread


def number(value: float) -> str:
    """Three significant digits, or whole when large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_summary(results: Mapping[str, Result]) -> None:
    """How many targets there were, and which were missed; and which runs were noisy."""
    figures = [figure for result in results.values() for figure in result.figures]
    judged = [figure for figure in figures if figure.met is not None]
    unmeasured = [figure.name for figure in figures if figure.target is not None and figure.met is None]
    print(f"{len(judged) - len(missed(figures))} of {len(judged)} targets met")
    for figure in missed(figures):
        target = figure.target.text(figure.unit) if figure.target is not None else ""
        print(f"  missed: {figure.name}: {number(figure.value or 0)} {figure.unit}, target {target}")
    for name in unmeasured:
        print(f"  not measured: {name}")
    for name, result in results.items():
        if result.noisy is not None:
            print(f"  noisy: {name}: {result.noisy}")


def write_markdown(path: Path, told: str, results: Mapping[str, Result]) -> None:
    """The same tables as Markdown, for a page that keeps a run. `told` names the machine."""
    lines = ["# A run of `make bench`", "", told + ".", ""]
    for name, result in results.items():
        lines += [f"**{name}**" + (f" (noisy: {result.noisy})" if result.noisy is not None else ""), ""]
        lines += [
            "| figure | value | floor | ratio | target | met | spread |",
            "| --- | ---: | ---: | ---: | --- | --- | --- |",
        ]
        for figure in result.figures:
            what, value, unit, *rest = (cell.replace("|", "/") for cell in _cells(figure))
            lines.append("| " + " | ".join((what, f"{value} {unit}".strip(), *rest)) + " |")
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def write_json(path: Path, figures: Sequence[Figure]) -> None:
    """A list of {name, value, unit, floor, ratio, target, met}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=2) + "\n", encoding="utf-8")
