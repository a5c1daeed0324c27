"""`python -m bench [NAME ...]`: run benchmarks, print their table, write what was asked for. Exit 1 when a target is missed.

A benchmark that cannot run here says why and is no failure; one that breaks is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bench import (
    acp,
    busy_sessions,
    cold_start,
    commits,
    drain,
    egress,
    history,
    idle_sessions,
    peers,
    reads,
    retention,
    round_trip,
    routing,
    steps,
)
from bench.figures import Result, missed
from bench.neighbours import busy_share, disturbance
from bench.picture import draw
from bench.report import machine, print_result, print_summary, write_json, write_markdown
from bench.settings import Settings
from bench.stage import BenchFailed

BENCHMARKS: Final[Mapping[str, Callable[[Settings], Result]]] = MappingProxyType(
    {
        "commits": commits.measure,
        "round-trip": round_trip.measure,
        "steps": steps.measure,
        "cold-start": cold_start.measure,
        "drain": drain.measure,
        "history": history.measure,
        "idle-sessions": idle_sessions.measure,
        "busy-sessions": busy_sessions.measure,
        "reads": reads.measure,
        "egress": egress.measure,
        "acp": acp.measure,
        "routing": routing.measure,
        "peers": peers.measure,
        "retention": retention.measure,
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    asked = _parser().parse_args(arguments)
    names = asked.names or list(BENCHMARKS)
    results: dict[str, Result] = {}
    broken: list[str] = []
    told = machine(asked.dir)
    print(told, flush=True)
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cbb", dir=asked.dir, ignore_cleanup_errors=True) as folder:
            settings = Settings(Path(folder), asked.scale, asked.minutes, asked.base_image)
            try:
                results[name] = _run(name, settings)
            except BenchFailed as error:
                broken.append(name)
                print(f"{name}: {error}", file=sys.stderr)
                continue
        print_result(name, results[name], time.monotonic() - began)
    figures = [figure for result in results.values() for figure in result.figures]
    if asked.json is not None:
        write_json(asked.json, figures)
    if asked.markdown is not None:
        write_markdown(asked.markdown, told, results)
    if draw(results, told, asked.picture):
        print(f"picture: {asked.picture}")
    print_summary(results)
    return 1 if broken or missed(figures) else 0


def _run(name: str, settings: Settings) -> Result:
    """One benchmark; noisy also when others were at work beside it."""
    before = busy_share()
    result = BENCHMARKS[name](settings)
    disturbed = disturbance((before, busy_share()))
    reasons = [reason for reason in (result.noisy, disturbed) if reason is not None]
    return replace(result, noisy="; ".join(reasons) or None)


def _known(name: str) -> str:
    """A benchmark's name. Raises ArgumentTypeError."""
    if name not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BENCHMARKS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", type=_known, metavar="NAME",
                        help=f"which ones: {', '.join(BENCHMARKS)}; all of them by default")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures to this file, as a list")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file, as Markdown")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parent / "out" / "bench.svg",
                        help="draw into this file: .svg or .png (default bench/out/bench.svg)")  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the repetitions and sizes (default 1)")
    parser.add_argument("--minutes", type=float, help="how long the busy sessions run")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the files lie that are measured"
    )
    parser.add_argument("--base-image", default="", help="what the agents' image is built on for the cold start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
