"""What becomes of the device between the cases of `virtq check`."""

from __future__ import annotations

import pytest

from virtq.check import keep
from virtq.check.case import Verdict
from virtq.check.keep import Keeper, Lasting
from virtq.check.run import Subject, chosen, run
from virtq.connecting import open_transport
from virtq.devices.rng import RngDevice
from virtq.errors import PeerGone, TransportError
from virtq.transports.base import DriverTransport, QueueEnd
from virtq.transports.loopback import LoopbackTransport

CASES = ("status.reset_while_live", "features.version_1_is_offered")


class Opener:
    """Opens a device in this process, until there is none any more."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> DriverTransport:
        if not self.left:
            raise TransportError("Connection refused")
        self.left -= 1
        return open_transport("loopback:rng")


def test_a_device_that_was_never_there() -> None:
    with pytest.raises(TransportError, match="refused"):
        Subject.find("loopback:rng", Opener(0), None, None)


def test_that_a_device_is_gone_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "RETURN_S", 0.0)
    opener = Opener(2)
    subject = Subject.find("loopback:rng", opener, None, None)
    first, second, *others = run(subject, chosen(CASES))
    assert first.verdict is Verdict.PASS
    assert second.verdict is Verdict.CRASHED
    assert "Connection refused" in second.reason
    assert {result.verdict for result in others} == {Verdict.SKIPPED}
    assert all("the device is gone: Connection refused" in other.reason for other in others)


@pytest.mark.parametrize(("failures", "comes"), [(2, True), (3, False)])
def test_one_that_took_too_long_once_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, comes: bool
) -> None:
    monkeypatch.setattr(keep, "RETURN_S", 0.0)
    asked = 0

    def open() -> str:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise TransportError("QEMU does not answer")
        return "it"

    if comes:
        assert Lasting().reach(open) == "it"
    else:
        with pytest.raises(PeerGone, match="does not answer"):
            Lasting().reach(open)
    assert asked == 3


class Leaving(LoopbackTransport):
    """Closes the connection once it has a queue, and is there again for the next one."""

    left = False
    has_queue = False

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        super().enable_queue(queue, desc, driver, device)
        self.has_queue = True

    def check(self) -> None:
        if self.has_queue and not Leaving.left:
            Leaving.left = True
            raise PeerGone("the other end has closed the connection")


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("malformed.a_buffer_nowhere", Verdict.PASS), ("status.reset_while_live", Verdict.CRASHED)],
)
def test_closing_the_connection_answers_a_malformed_ring_only(name: str, verdict: Verdict) -> None:
    """A back-end may do so for what no driver should do, if it takes the next one."""
    Leaving.left = False

    def open() -> DriverTransport:
        device = RngDevice()
        return Leaving(device, when_closed=device.close)

    subject = Subject.find("leaving", open, None, None)
    results = [result.verdict for result in run(subject, chosen([name]))]
    assert results[0] is verdict
    assert set(results[1:]) == {Verdict.PASS}


def test_what_is_not_renewable_is_closed() -> None:
    opener = Opener(3)
    keeper = Keeper(Lasting(), opener)
    for _ in range(3):
        keeper.give_back(keeper.open(), well=True)
    keeper.close()
    assert opener.left == 0
