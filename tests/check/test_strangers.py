"""Back-ends that are unlike those at hand: right ones of other habits, which have to pass, and ones
that say anything, at which the judge ends with one error."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from tests.check.reference import Reference, Split
from tests.check.reference_vhost_user import BackEnd, Network
from tests.check.reference_vhost_user_channel import CONFIG, NUMBER, REPLY, STATE, Gone
from tests.check.reference_vhost_user_disk import Disk, Wire
from virtq.check.case import CASES, Result, Verdict
from virtq.check.driver.start import Command
from virtq.check.keep import Started
from virtq.check.queue_size import bearable_size
from virtq.check.results import BAD
from virtq.check.run import Subject, chosen, run
from virtq.check.work import FS_ID, FUSE_IN, FUSE_OUT
from virtq.cli import run as cli
from virtq.cli.failures import EXIT_UNUSABLE
from virtq.cli.probe import guess_device
from virtq.errors import PeerGone, TransportError
from virtq.features import F
from virtq.model.memory import Taken
from virtq.status import Status
from virtq.transports.base import DriverTransport
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import Front, P
from virtq.wire.net import NetFeature as N

PATIENCE_S = 10.0


def judged(subject: Subject, *patterns: str) -> list[Result]:
    return list(run(subject, chosen(patterns), patience_s=PATIENCE_S))


def faults(results: list[Result]) -> list[tuple[str, str, str, str]]:
    return [(r.title, r.expected, r.came, r.reason) for r in results if r.verdict in BAD]


# Right ones of other habits


class OneListenerEach(BackEnd):
    """It makes its socket anew for every connection."""

    def _serve(self, sock: socket.socket) -> None:
        self.listener.close()
        os.unlink(self.path)
        super()._serve(sock)
        if not self.dead:
            self.listener = channel.listen(self.path)


class OwnedOnce(BackEnd):
    """It closes when somebody claims it again."""

    def begin(self) -> None:
        super().begin()
        self.is_owned = False

    def on_set_owner(self, body: bytes, fds: list[int]) -> None:
        if self.is_owned:
            raise Gone
        self.is_owned = True


class EndsAtLargeQueues(BackEnd):
    """It refuses a queue that is too large, and closes the connection as well."""

    def on_set_vring_num(self, body: bytes, fds: list[int]) -> None:
        if STATE.unpack(body)[1] > self.disk.size_max:
            raise Gone
        super().on_set_vring_num(body, fds)


class HeadOfNoConfiguration(BackEnd):
    """It tells an error of GET_CONFIG with the head of a configuration of no bytes."""

    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        return super().on_get_config(body, fds) or CONFIG.pack(0, 0, 0)


class EndsWithoutVersion1(BackEnd):
    """It closes when VERSION_1 is not accepted, and does not go on (6.2)."""

    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        if not int.from_bytes(body, "little") & F.VERSION_1:
            raise Gone
        super().on_set_features(body, fds)


class StartsWithItsCalls(BackEnd):
    """A ring starts only once it was told whom to call, or that nobody is to be called."""

    def begin(self) -> None:
        super().begin()
        self.told: set[int] = set()

    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        self.told.add(NUMBER.unpack(body)[0] & 0xFF)
        super().on_set_vring_call(body, fds)

    def on_get_vring_base(self, body: bytes, fds: list[int]) -> bytes | None:
        self.told.discard(STATE.unpack(body)[0])
        return super().on_get_vring_base(body, fds)

    def start(self, index: int, kick: int) -> None:
        if index in self.told:
            super().start(index, kick)
        else:
            os.close(kick)


class UsesWhatLiesNowhere(BackEnd):
    """A buffer that lies nowhere is used without a word, and the ring goes on."""

    class disk_type(Disk):
        def handle(self, buffer: Taken) -> int:
            try:
                return super().handle(buffer)
            except Exception as error:
                if "mapped" in str(error):
                    return 0
                raise


class LeavesTheRest(Network):
    """It offers what only its front-end can serve: the control queue, the number of pairs."""

    class disk_type(Wire):
        offered = Wire.offered | int(N.CTRL_VQ | N.CTRL_RX | N.MQ)


@pytest.mark.parametrize(
    "habit", [OneListenerEach, OwnedOnce, HeadOfNoConfiguration, EndsWithoutVersion1]
)
def test_other_habits_pass(habit: type[BackEnd]) -> None:
    with habit() as back_end:
        results = judged(
            back_end.subject(),
            "features.version_1_declined",
            "vhost_user_messages",
            "vhost_user_memory.configuration*",
            "vhost_user_rings.a_small_ring",
            "split.around_the_ring",
        )
    assert not faults(results)
    assert sum(result.verdict is Verdict.PASS for result in results) > 20


def test_a_ring_that_waits_for_its_calls() -> None:
    with StartsWithItsCalls() as back_end:
        results = judged(back_end.subject(), "vhost_user_rings")
    assert not faults(results)
    passed = {result.case.name for result in results if result.verdict is Verdict.PASS}
    assert passed >= {
        "vhost_user_rings.a_kick_starts_a_ring",
        "vhost_user_rings.a_ring_that_is_polled",
        "vhost_user_rings.inband_kicks",
    }


def test_a_buffer_that_is_used_is_no_error() -> None:
    with UsesWhatLiesNowhere() as back_end:
        results = judged(back_end.subject(), "vhost_user_rings.errors")
    assert [result.verdict for result in results] == [Verdict.SKIPPED] * 2
    assert all("lies nowhere is used" in result.reason for result in results)


def test_what_the_front_end_serves_is_not_asked_of_a_back_end() -> None:
    names = "the_number_of_pairs", "which_queue_is_which"
    with LeavesTheRest() as back_end:
        results = judged(
            back_end.subject(),
            *(f"net_config.{name}" for name in names),
            "net_control.acknowledgements",
            "net_filter.basic_modes",
        )
    seen = [result for result in results if "not offered" not in result.reason]
    assert [result.verdict for result in seen] == [Verdict.SKIPPED] * 6
    assert all("the front-end's" in result.reason for result in seen)


def test_the_size_of_queue_that_it_bears() -> None:
    gone: list[None] = []
    with EndsAtLargeQueues() as back_end:
        size = bearable_size(back_end.dial, lambda: gone.append(None), PATIENCE_S)
        assert size == back_end.disk.size_max
    assert 2 ** len(gone) * size == 1024


def test_rings_are_enabled_before_they_are_kicked() -> None:
    """A kick does not wait behind the messages that were sent before it; some back-ends drop one
    that comes while the ring is disabled."""
    asked: list[int] = []

    class Recording(BackEnd):
        protocol = BackEnd.protocol & ~(P.REPLY_ACK | P.STATUS | P.BACKEND_REQ)

        def check(self, request: int, flags: int, size: int) -> None:
            asked.append(request)
            super().check(request, flags, size)

    with Recording() as back_end:
        transport = back_end.open()
        transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        transport.write_features(int(F.VERSION_1))
        asked.clear()
        transport.write_status(Status.DRIVER_OK)
        transport.close()
    assert asked[-1] == Front.GET_FEATURES


class FileSystem(Reference):
    """It answers each request with an error."""

    device_id = FS_ID
    queue_count = 2

    def handle(self, buffer: Taken) -> int:
        unique = FUSE_IN.unpack(buffer.read())[2]
        buffer.write(FUSE_OUT.pack(FUSE_OUT.size, -95, unique + self.off_by))
        return FUSE_OUT.size

    off_by = 0


class AnotherNumber(FileSystem):
    off_by = 1


def judge_in_process(device: type[DriverTransport], *patterns: str) -> list[Result]:
    return judged(Subject.find("reference:", device, None, None), *patterns)


def test_a_file_system() -> None:
    assert not faults(judge_in_process(FileSystem, "split.a*", "packed.r*", "framing"))
    assert faults(judge_in_process(AnotherNumber, "split.around_the_ring"))


class SaysItWroteAll(Reference):
    """The length of a used entry is that of the whole buffer and more."""

    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.used_idx % self.size
            super()._use(batch)
            id, length = self.ring.used(slot)
            self.ring.set_used(slot, id, length + 4096)


def test_long_lengths_are_told_by_the_cases_about_lengths() -> None:
    by_case = {
        result.case.name: result.verdict
        for result in judge_in_process(SaysItWroteAll, "split.the_id_is*", "split.around*")
        if str(result.kind) == "split"
    }
    assert by_case["split.the_id_is_the_head"] is Verdict.FAIL
    assert by_case["split.around_the_ring"] is Verdict.PASS


def test_a_type_is_not_guessed_from_little() -> None:
    """Three features of a SCSI host are those of a network device by number."""
    assert guess_device(int(F.VERSION_1) | 0b111, 36, 5) is None
    assert guess_device(int(F.VERSION_1) | 0b111, 36) is not None


# Ones that say anything


class Liar(BackEnd):
    """`how` it answers the request of number `at`."""

    how = ""
    at = 1

    def begin(self) -> None:
        super().begin()
        self.count = 0

    def one(self, sock: socket.socket) -> None:
        self.count += 1
        if self.how == "close" and self.count == self.at:
            raise Gone
        super().one(sock)

    def send(self, sock: socket.socket, request: Front, body: bytes, *fds: int) -> None:
        right = struct.pack("=III", request, 1 | REPLY, len(body)) + body
        wrong = {
            "garbage": b"\xa5" * len(right),
            "another size": struct.pack("=III", request, 1 | REPLY, 0xFFFF_FFF0),
            "another request": struct.pack("=III", 99, 1 | REPLY, len(body)) + body,
            "no reply": struct.pack("=III", request, 1, len(body)) + body,
            "half": right[:15],
        }
        if self.how not in wrong or self.count < self.at:
            super().send(sock, request, body, *fds)
            return
        with contextlib.suppress(OSError):
            sock.sendall(wrong[self.how])
        if self.how == "half":
            raise Gone


HOWS = ("close", "garbage", "another size", "another request", "no reply", "half")


@pytest.mark.parametrize("how", HOWS)
def test_nothing_right_from_the_beginning(how: str) -> None:
    class It(Liar):
        pass

    It.how = how
    with It() as back_end, pytest.raises(TransportError):
        Subject.find("it", back_end.open, 2, "vhost-user", back_end.dial)


@pytest.mark.parametrize("how", HOWS)
def test_wrong_in_the_middle(how: str) -> None:
    """Every case comes to a verdict, and none of them to a fault of the judge's."""

    class It(Liar):
        at = 14

    It.how = how
    names = ("status.reset_while_live", "split.around_the_ring", "vhost_user_messages.replies")
    with It() as back_end:
        results = list(run(back_end.subject(), [CASES[name] for name in names], patience_s=0.2))
    assert any(result.verdict in BAD for result in results)
    assert not [result.reason for result in results if "itself failed" in result.reason]


@pytest.mark.parametrize(
    ("options", "patience", "limit"), [("", "0.1", "0.25 s"), ("?timeout=0.125", "9", "0.125 s")]
)
def test_patience_is_for_messages_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, patience: str, limit: str
) -> None:
    path = str(tmp_path / "silent.sock")
    with channel.listen(path):
        status = cli(["check", f"vhost-user:{path}{options}", "--patience", patience])
    assert status == EXIT_UNUSABLE
    assert f"no answer to GET_FEATURES within {limit}" in capsys.readouterr().err


# What is started


def start(tmp_path: Path, then: str) -> Started:
    """A command that listens, takes one connection, and goes on as `then`."""
    text = f"import os, socket\ns = socket.socket(socket.AF_UNIX)\ns.bind({str(tmp_path / 's')!r})"
    script = tmp_path / "it.py"
    script.write_text(f"{text}\ns.listen()\nc, _ = s.accept()\nc.recv(1)\n{then}\n")
    command = Command(f"rm -f {tmp_path / 's'}; exec {sys.executable} {script}")
    return Started(lambda: command.start("", None, 0))


def test_one_that_ends_with_its_connection_is_started_for_each(tmp_path: Path) -> None:
    with start(tmp_path, "raise SystemExit(0)") as started:
        for _ in range(3):
            started.reach(lambda: channel.connect(str(tmp_path / "s"), 5.0)).close()
            started.look_whether_it_ends()
            assert not started.ending()


def test_one_that_fails_has_crashed(tmp_path: Path) -> None:
    with start(tmp_path, "raise SystemExit('no more')") as started:
        started.reach(lambda: channel.connect(str(tmp_path / "s"), 5.0)).close()
        assert started.ending() == "it ended with status 1: no more"
        with pytest.raises(PeerGone, match="no more"):
            started.reach(lambda: channel.connect(str(tmp_path / "s"), 5.0))
