"""Prepares the process while `clawbus serve` is still being imported: signals wait, and no garbage is collected.

Importing takes longer than some signals take to come. Blocked, they stay pending in the kernel; `daemon.app.signals` takes
them over once its handlers are there. What imports make stays, and the collector would walk it again and again: a tenth of
the start. Structlog imports rich for tracebacks, which the log renders itself: another tenth.

Imports next to nothing for other commands, because it runs before everything else.
"""

from __future__ import annotations

import gc
import importlib
import signal
import sys
from typing import Final, cast

_HELD: Final = (
    signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
)  # fmt: skip


def hold() -> None:
    """Block signals, stop collecting and leave out what only slows the start, if this process may become the daemon."""
    if _may_be_daemon():
        gc.disable()
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        _import_structlog_without_rich()


def release() -> None:
    """Undo `hold`, for a command that is not the daemon's start."""
    collect()
    release_signals()


def collect() -> None:
    """Collect garbage again, except what is imported by now. Do nothing where it is collected anyway."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def release_signals() -> None:
    """Let signals come: their handlers are installed."""
    if _may_be_daemon():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _import_structlog_without_rich() -> None:
    """Import structlog while rich cannot be found. It can be imported again afterwards, for a command's report."""
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    modules = cast(dict[str, object], sys.modules)
    modules["rich"] = None
    try:
        importlib.import_module("structlog")
    finally:
        del modules["rich"]


def _may_be_daemon() -> bool:
    """Return whether the command line may start a daemon: `clawbus ... serve ...`, or `python -m daemon.cli`."""
    program = sys.argv[0] if sys.argv else ""
    ours = program == "-m" or program.endswith(("/clawbus", "/daemon/cli/__main__.py"))
    return ours and "serve" in sys.argv[1:]
