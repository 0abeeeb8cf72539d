"""Faults in words, and the dice."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.wrap import Fault, FaultError, Faulty
from virtq.wrap.fault import Dice, Plan, parse_all


@pytest.mark.parametrize(
    ("text", "what", "action", "numbers"),
    [
        ("read:3:EIO", "read", "error", {3}),
        ("*:always:hang", "*", "hang", set(range(1, 21))),
        ("write:/5:delay=10ms", "write", "delay", {5, 10, 15, 20}),
        ("requestq1:7-9:reorder", "requestq1", "reorder", {7, 8, 9}),
        ("flush:18+:late-call=1.5s", "flush", "late-call", {18, 19, 20}),
        ("flush:1:drop-call", "flush", "drop-call", {1}),
        ("read:2:corrupt-used=length", "read", "corrupt-used", {2}),
    ],
)
def test_what_is_meant(text: str, what: str, action: str, numbers: set[int]) -> None:
    fault = Fault.parse(f" {text} ")
    assert (fault.text, fault.what, fault.action) == (text, what, action)
    assert {n for n in range(1, 21) if n in fault.when} == numbers
    assert fault.when.probability == 1


def test_the_details() -> None:
    assert Fault.parse("a:1:enospc").code == errno.ENOSPC
    assert Fault.parse("a:0.5%:EIO").when.probability == 0.005
    assert Fault.parse("a:1:delay=250us").time_s == 250e-6
    assert Fault.parse("a:1:late-call=2s").time_s == 2
    assert Fault.parse("a:1:corrupt-used=order").corruption == "order"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("read", "has the form WHAT:WHEN:FAULT"),
        ("read:1%", "has the form"),
        ("read::EIO", "has the form"),
        ("read:0%:EIO", "0% is not more than 0%"),
        ("read:101%:EIO", "101% is not more than 0% and at most 100%"),
        ("read:0:EIO", "counting begins at 1"),
        ("read:/0:EIO", "counting begins at 1"),
        ("read:9-7:EIO", "9-7 ends before it begins"),
        ("read:often:EIO", "'often' is none of 1%, always, 7, 7+, 7-9, /10"),
        ("read:-1:EIO", "'-1' is none of"),
        ("read:1:EIEIO", "'EIEIO' is no fault; did you mean E"),
        ("read:1:dealy=1ms", "'dealy=1ms' is no fault; did you mean delay"),
        ("read:1:delay", "delay= is followed by a time such as 10ms, not ''"),
        ("read:1:delay=10", "such as 10ms, not '10'"),
        ("read:1:delay=-1ms", "not '-1ms'"),
        ("read:1:hang=1", "'hang=1' is no fault"),
        ("read:1:corrupt-used", "corrupt-used= is followed by one of id, length, order"),
        ("read:1:errorcode", "is no fault"),
    ],
)
def test_what_cannot_be_understood(text: str, said: str) -> None:
    with pytest.raises(FaultError) as caught:
        Fault.parse(text)
    assert str(caught.value).startswith(f"fault {text!r}: ")
    assert said in str(caught.value)


def test_scripts(tmp_path: Path) -> None:
    script = tmp_path / "faults.txt"
    script.write_text("# what goes wrong\n\nread:3:EIO  # the third\n  write:1%:delay=1ms\n")
    faults = parse_all(["flush:1:EIO", f"@{script}"])
    assert [fault.text for fault in faults] == ["flush:1:EIO", "read:3:EIO", "write:1%:delay=1ms"]
    script.write_text("read:3:EIO\nread:x:EIO\n")
    with pytest.raises(FaultError, match=r"faults.txt:2: fault 'read:x:EIO': 'x' is none of"):
        parse_all([f"@{script}"])
    script.write_bytes(b"\xff\xfe")
    with pytest.raises(FaultError, match="not UTF-8"):
        parse_all([f"@{script}"])
    with pytest.raises(FaultError, match=r"fault script /nowhere: No such file"):
        parse_all(["@/nowhere"])


def test_names_that_the_device_does_not_have() -> None:
    device = BlkDevice(Disk.memory(1 << 16), queues=2)
    with pytest.raises(FaultError, match="no request and no queue is called 'raed'; did you mean"):
        Faulty(device, "raed:1:EIO")
    with pytest.raises(FaultError, match="there are: read, write, flush, get-id, discard, write-z"):
        Faulty(device, "42:1:EIO")
    for what in ("write-*", "requestq2", "*"):
        Faulty(device, f"{what}:1:EIO")


def throws(dice: Dice, count: int = 2000) -> list[Plan | None]:
    return [dice.throw("read", "requestq1") for _ in range(count)]


def test_chance_is_the_seeds() -> None:
    faults = parse_all(["read:10%:EIO", "requestq1:1%:hang"])
    first = throws(Dice(faults, 7))
    assert first == throws(Dice(faults, 7))
    assert first != throws(Dice(faults, 8))
    failed = [index for index, plan in enumerate(first) if plan and plan.error]
    assert 120 < len(failed) < 280
    # One fault more does not change when the others happen.
    more = throws(Dice(parse_all(["write:50%:EIO", "*:30%:reorder"]) + faults, 7))
    assert [index for index, plan in enumerate(more) if plan and plan.error] == failed


def test_faults_add_up() -> None:
    dice = Dice(parse_all(["read:1:delay=1ms", "*:1:delay=2ms", "read:1:EIO", "read:1:EPERM"]), 0)
    assert dice.throw("read", "q") == Plan(error=errno.EIO, delay_s=0.003)
    assert dice.throw("read", "q") is None
    assert dice.throw("", "q") is None
    assert dice.happened == {
        "read:1:delay=1ms": 1, "*:1:delay=2ms": 1, "read:1:EIO": 1, "read:1:EPERM": 1,
    }  # fmt: skip
