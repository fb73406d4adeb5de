"""The first signal asks, the second one ends; afterwards everything is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mambaadv2.signals import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signal() as request:
        assert (request.signal, request.name) == (None, "")
        os.kill(os.getpid(), number)
        assert (request.signal, request.name) == (number, number.name)
        assert signal.getsignal(number) is signal.SIG_DFL
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


STUBBORN = """
import signal, time
from mambaadv2.signals import stop_on_signal
with stop_on_signal() as request:
    print("ready", flush=True)
    while request.signal is None:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"asked\n"
        process.send_signal(second)
        assert process.wait(timeout=30) == -second


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_runs_without_signals() -> None:
    seen: list[int | None] = []

    def work() -> None:
        with stop_on_signal() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
