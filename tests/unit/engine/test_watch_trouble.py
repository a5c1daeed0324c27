"""A watcher's failure names the limit that is used up, and is logged once, not every five seconds."""

import errno

import pytest

from daemon.engine.watch_trouble import TroubleLog, hint_of


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "max_user_instances"),
        (OSError(errno.ENOSPC, "No space left on device"), "max_user_watches"),
        (OSError("Too many open files (os error 24)"), "max_user_instances"),
        (OSError("OS file watch limit reached. about [\"/x\"]"), "max_user_watches"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "named folder"),
        (ValueError("a bug"), "Polling continues"),
    ],
)  # fmt: skip
def test_the_hint_is_of_the_cause(error: Exception, words: str) -> None:
    assert words in hint_of(error)


def test_the_same_failure_is_news_once_an_hour_and_after_a_recovery() -> None:
    log = TroubleLog()
    full = OSError(errno.EMFILE, "Too many open files")
    assert [log.is_news(full, at) for at in (0.0, 5.0, 3599.0, 3600.0, 3605.0)] == [True, False, False, True, False]
    assert log.is_news(OSError(errno.ENOSPC, "none left"), 3610.0)
    log.recovered()
    assert log.is_news(OSError(errno.ENOSPC, "none left"), 3611.0)
