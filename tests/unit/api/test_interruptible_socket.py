"""A read ends by a signal even if the signal interrupts no system call of its thread."""

import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from daemon.api.interruptible_socket import InterruptibleSocket


class InterruptedByTestError(Exception):
    pass


@pytest.fixture
def pair() -> Iterator[tuple[InterruptibleSocket, socket.socket]]:
    here, there = socket.socketpair()
    ours = InterruptibleSocket(fileno=here.detach())
    with ours, there:
        yield ours, there


def test_a_signal_that_another_thread_got_ends_the_read(
    pair: tuple[InterruptibleSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedByTestError

    waits, over = threading.Event(), threading.Event()
    ours, _ = pair
    real = InterruptibleSocket._wait
    monkeypatch.setattr(InterruptibleSocket, "_wait", lambda sock, timeout: (waits.set(), real(sock, timeout))[1])

    def elsewhere() -> None:
        waits.wait(60)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        over.wait(60)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        ours.settimeout(60)
        with pytest.raises(InterruptedByTestError):
            ours.recv_into(bytearray(1))
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_it_reads_what_comes_and_sees_the_end(pair: tuple[InterruptibleSocket, socket.socket]) -> None:
    ours, there = pair
    ours.settimeout(None)
    there.sendall(b"ab")
    buffer = bytearray(8)
    assert (ours.recv_into(buffer), bytes(buffer[:2])) == (2, b"ab")
    there.close()
    assert ours.recv_into(buffer) == 0


def test_it_keeps_its_timeout(pair: tuple[InterruptibleSocket, socket.socket]) -> None:
    ours, _ = pair
    ours.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ours.recv_into(bytearray(1))
    ours.settimeout(0)
    with pytest.raises(BlockingIOError):
        ours.recv_into(bytearray(1))
