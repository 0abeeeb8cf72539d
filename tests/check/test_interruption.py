"""Nothing that the judge has started is forgotten, whenever it is told to end."""

from __future__ import annotations

import signal
import threading

import pytest

from virtq.check.driver.start import uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_waits_for_what_must_not_be_cut_short(number: signal.Signals) -> None:
    def came(number: int, _: object) -> None:
        raise InterruptedError(number)

    before = signal.signal(number, came)
    done = []

    def start() -> None:
        with uninterrupted():
            signal.raise_signal(number)
            done.append("inside")
        done.append("behind")

    try:
        with pytest.raises(InterruptedError):
            start()
        assert done == ["inside"]
        assert signal.getsignal(number) is came
    finally:
        signal.signal(number, before)


def test_signals_are_left_alone_where_python_cannot_catch_them() -> None:
    done = []

    def start() -> None:
        with uninterrupted():
            done.append("inside")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert done == ["inside"]
