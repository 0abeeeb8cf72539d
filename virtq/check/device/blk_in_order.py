"""In-order use by a block device: slow requests and quick ones, those that fail, and flushes."""

from __future__ import annotations

import random

from virtq.check.case import case, expect
from virtq.check.context import Context, Live
from virtq.check.device.in_order_resets import in_sequence
from virtq.check.disk import capacity, live_disk, put_back, read, request, writable_disk
from virtq.check.session import UNTOUCHED, Job, Sent
from virtq.wire import blk
from virtq.wire.blk import ID_BYTES, SECTOR_BYTES, BlkFeature, Status, Type

_BLK = blk.DEVICE_ID
_ORDER = "resv.dev.in-order-use"
_ELIGIBLE = ("split.inorder.dev.eligible", "packed.inorder.dev.eligible")
_SKIPPED = ("split.inorder.dev.skip-only-full", "packed.inorder.dev.skip-only-full")
_LARGE_SECTORS = 128
_FAR = 1 << 40


def _serve(live: Live, jobs: list[Job]) -> list[Sent]:
    """Make them available together, and collect them in order."""
    sent = [live.ring.add(job) for job in jobs]
    live.ring.kick()
    done = live.ring.wait(len(jobs))
    in_sequence(done, sent[0].number)
    return done


def _statuses(done: list[Sent], wanted: list[int]) -> None:
    came = [sent.reply[-1] for sent in done]
    expect(came == wanted, f"statuses {[int(status) for status in wanted]}", came)


@case(_ORDER, *_ELIGIBLE, "vq.in-order-offer-meaning", device_id=_BLK, in_order=True)
def slow_ones_and_quick_ones(ctx: Context) -> None:
    """Large reads, and small requests and flushes behind them, in one batch and in many sizes: a
    quick one is not used before the slow one that came before it."""
    live = live_disk(ctx, BlkFeature.FLUSH)
    large = min(_LARGE_SECTORS, capacity(live.session)) * SECTOR_BYTES
    slow = request(Type.IN, 0, room=large)
    quick = [
        request(Type.GET_ID, room=ID_BYTES),
        request(Type.FLUSH),
        request(Type.IN, 0, room=SECTOR_BYTES),
    ]
    known = read(live, 0, large // SECTOR_BYTES)
    for turn in range(8):
        jobs = [slow, *quick[: turn % 3 + 1], slow, quick[turn % 3], quick[(turn + 1) % 3]]
        done = _serve(live, jobs)
        for sent, job in zip(done, jobs, strict=True):
            if job is not quick[0]:
                status = sent.reply[-1]
                expect(status == Status.OK, "status OK", f"status {status}")
            if job is slow:
                expect(sent.reply[:-1] == known, "the same data each time", "other bytes")


@case(_ORDER, *_ELIGIBLE, device_id=_BLK, in_order=True)
def writes_and_flushes(ctx: Context) -> None:
    """Writes of many sizes with flushes between them, in one batch: each is used in its turn, and
    what was written last is there in the end."""
    live = writable_disk(ctx, BlkFeature.FLUSH)
    chance = random.Random(ctx.seed)
    with put_back(live, 16):
        for turn in range(6):
            jobs: list[Job] = []
            for sector in range(0, 16, 4):
                data = chance.randbytes(chance.randint(1, 4) * SECTOR_BYTES)
                jobs.append(request(Type.OUT, sector, data))
                if sector % 8 == turn % 2 * 4:
                    jobs.append(request(Type.FLUSH))
            _statuses(_serve(live, jobs), [Status.OK] * len(jobs))
            for job in jobs:
                sector = int.from_bytes(job.readable[8:16], "little")
                data = job.readable[16:]
                if data:
                    now = read(live, sector, len(data) // SECTOR_BYTES)
                    expect(now == data, f"what was written at {sector}", "other bytes")


@case(_ORDER, *_SKIPPED, device_id=_BLK, in_order=True)
def what_fails_is_not_skipped(ctx: Context) -> None:
    """A read that fails leaves its data unwritten, so that it has a used entry of its own, with a
    length that says so; those around it may be skipped."""
    live = live_disk(ctx)
    good = request(Type.IN, 0, room=2 * SECTOR_BYTES)
    bad = request(Type.IN, _FAR, room=2 * SECTOR_BYTES)
    for pattern in range(1, 32):
        jobs = [bad if pattern >> index & 1 else good for index in range(5)]
        entries = len(live.ring.entries)
        done = _serve(live, jobs)
        wanted = [Status.IOERR if job is bad else Status.OK for job in jobs]
        _statuses(done, [int(status) for status in wanted])
        at = 0
        for entry in live.ring.entries[entries:]:
            for sent in done[at : at + entry.covers - 1]:
                run = bytes([UNTOUCHED]) * 64
                expect(
                    run not in sent.reply,
                    f"every byte of skipped buffer {sent.number} written",
                    "its data was not",
                )
            at += entry.covers


@case(_ORDER, *_ELIGIBLE, device_id=_BLK, in_order=True)
def requests_of_every_sort(ctx: Context) -> None:
    """A long random run: reads of every size, IDs, flushes, requests that fail and that do not
    exist, made available while others are in use."""
    live = live_disk(ctx)
    chance = random.Random(ctx.seed)
    sectors = capacity(live.session)
    number, first = 0, 0
    while number < 400:
        for _ in range(chance.randint(1, max(1, live.ring.half.free // 2))):
            if live.ring.half.free < 2:
                break
            live.ring.add(_some(chance, sectors))
            number += 1
        live.ring.kick()
        done = live.ring.wait(chance.randint(1, number - first))
        in_sequence(done, first)
        first += len(done)
        for sent in done:
            kind = sent.job.readable[0]
            far = int.from_bytes(sent.job.readable[8:16], "little") == _FAR
            wanted = Status.IOERR if far else Status.UNSUPP if kind == _UNKNOWN else Status.OK
            if kind in (Type.IN, _UNKNOWN):
                status = sent.reply[-1]
                expect(status == wanted, f"status {wanted.name} for type {kind}", status)
    in_sequence(live.ring.wait(number - first), first)


_UNKNOWN = 0x77


def _some(chance: random.Random, sectors: int) -> Job:
    match chance.randrange(6):
        case 0:
            return request(Type.GET_ID, room=ID_BYTES)
        case 1:
            return request(_UNKNOWN)
        case 2:
            return request(Type.IN, _FAR, room=SECTOR_BYTES * chance.randint(1, 8))
        case _:
            count = chance.randint(1, min(16, sectors))
            sector = chance.randrange(sectors - count + 1)
            return request(Type.IN, sector, room=SECTOR_BYTES * count)
