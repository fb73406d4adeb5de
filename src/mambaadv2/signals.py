"""Stopping on request: the first Ctrl-C or SIGTERM asks, the second one ends the process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked to stop; looked at between steps, where state is whole.

    signal: the number of the signal that came, None so far.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def name(self) -> str:
        """What came, for people: "SIGTERM"."""
        return "" if self.signal is None else signal.Signals(self.signal).name


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the context SIGINT and SIGTERM set the request's `signal` instead of ending anything.

    The next signal of either kind ends the process at once, as the system does it. Outside the main
    thread, where Python takes no signals, the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    found = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    # A signal that is ignored stays so: a job in a shell's background.
    before = {each: handler for each, handler in found.items() if handler is not signal.SIG_IGN}

    def ask(number: int, _: FrameType | None) -> None:
        request.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    for each in before:
        signal.signal(each, ask)
    try:
        yield request
    finally:
        for each, handler in before.items():
            # None: set by something other than Python, which cannot be put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
