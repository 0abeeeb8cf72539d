"""The packed virtqueue (2.8)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.session import UNTOUCHED
from virtq.model.memory import AVAIL, USED, WRITE

_ID = "packed.used.id-from-list"


@case("packed.flags.used-encoding", "packed.wrap.init-one", _ID, packed=True)
def the_first_used_descriptor(ctx: Context) -> None:
    """The first used descriptor is in slot 0, with AVAIL and USED both 1, as the wrap counters
    begin, and with the Buffer ID of the buffer."""
    live = ctx.live()
    live.ring.serve(live.work.job(0))
    entry = live.ring.entries[0]
    expect(entry.slot == 0, "a used descriptor in slot 0", entry)
    expect(entry.flags is not None and entry.flags & AVAIL and entry.flags & USED, "1/1", entry)


@case(
    "packed.wrap.device-toggle",
    "packed.flags.used-encoding",
    "packed.poll.single-location",
    packed=True,
)
def around_the_ring(ctx: Context) -> None:
    """Four laps of a small ring: the bits say 1/1 in the first, 0/0 in the second, and so on."""
    live = ctx.live(size=8)
    for seed in range(32):
        live.ring.serve(live.work.job(seed))
    laps = {(e.flags & AVAIL != 0, e.flags & USED != 0) for e in live.ring.entries if e.flags}
    zero = [e for e in live.ring.entries if e.flags is not None and not e.flags & (AVAIL | USED)]
    expect((True, True) in laps and zero, "used descriptors of both wrap values", laps)


@case("packed.size.not-power-of-two", "packed.size.any-up-to-32768", packed=True)
def a_size_that_is_no_power_of_two(ctx: Context) -> None:
    """A ring of 7 slots, around and around."""
    live = ctx.live(size=7)
    for first in range(0, 21, 3):
        live.ring.serve(*live.jobs(3, first))


@case("packed.list.dev.one-used-per-list", _ID, packed=True)
def a_list_has_one_used_descriptor(ctx: Context) -> None:
    """A list of descriptors is used by one used descriptor, over its first slot; the next one is
    behind the whole list."""
    live = ctx.live()
    if live.slots < 2:
        raise NotObservable("this device type's requests have one descriptor")
    for seed in range(6):
        live.ring.serve(live.work.job(seed))
    slots = [entry.slot for entry in live.ring.entries]
    expect(slots == [0, 2, 4, 6, 8, 10], "used descriptors in slots 0, 2, 4, 6, 8, 10", slots)


@case("packed.list.dev.same-order", "packed.wrap.device-toggle", packed=True)
def a_list_across_the_end(ctx: Context) -> None:
    """Lists that begin in the last slot and end in the first, at every offset."""
    live = ctx.live(size=5)
    if live.slots < 2:
        raise NotObservable("this device type's requests have one descriptor")
    for seed in range(15):
        live.ring.serve(live.work.job(seed))


@case(
    "packed.used.write-flag-meaning",
    "packed.used.len-meaning",
    "packed.used.len-reserved-without-write",
    packed=True,
)
def the_write_flag(ctx: Context) -> None:
    """A used descriptor has WRITE exactly when the device wrote something; its length counts only
    then."""
    live = ctx.live()
    for sent in live.ring.serve(*live.jobs(8)):
        wrote = any(byte != UNTOUCHED for byte in sent.reply)
        if wrote != bool(sent.writable):
            raise NotObservable("whether a buffer was written does not show")
    wrote = any(sent.writable for sent in live.ring.sent.values())  # all of them, or none
    for entry in live.ring.entries:
        expect(
            bool((entry.flags or 0) & WRITE) == wrote,
            "WRITE set in used descriptors of written buffers" if wrote else "WRITE not set",
            entry,
        )


@case("packed.desc.dev.no-write-to-readable", packed=True)
def readable_bytes_stay(ctx: Context) -> None:
    """Device-readable bytes are as they were, after every kind of request that is known."""
    live = ctx.live()
    live.ring.serve(*live.jobs(8))  # `Sent.check` compares them


@case("packed.desc.dev.no-change-after-used", packed=True)
def used_descriptors_stay(ctx: Context) -> None:
    """A descriptor that was used is left alone until the driver makes it available again."""
    live = ctx.live()
    live.ring.serve(*live.jobs(4))
    memory, areas = live.session.arena.memory, live.ring.areas
    before = memory.read(areas.desc, areas.driver - areas.desc)
    for _ in live.session.moment():
        now = memory.read(areas.desc, areas.driver - areas.desc)
        expect(now == before, "used descriptors left alone", "a slot that changed")


@case("packed.desc.dev.use-only-available", packed=True)
def what_is_not_available_is_not_used(ctx: Context) -> None:
    """Descriptors of which all but the head's flags is written are not used, though the device is
    notified; they are once the flags say so."""
    live = ctx.live(size=8)
    live.ring.serve(live.work.job(0))
    for seed in range(1, 3):
        live.ring.add(live.work.job(seed))  # the half holds the heads back until it publishes
    before = live.session.arena.memory.read(live.ring.areas.desc, 16 * 8)
    live.ring.signal()
    for _ in live.session.moment():
        now = live.session.arena.memory.read(live.ring.areas.desc, 16 * 8)
        expect(now == before, "nothing used before it is available", "a used descriptor")
    live.ring.kick(always=True)
    live.ring.wait(2)


@case("packed.dev.start-in-order", "packed.dev.write-in-completion-order", packed=True)
def many_at_once(ctx: Context) -> None:
    """A ring full of buffers, several times: each is used once, by descriptors in ring order."""
    live = ctx.live(size=64)
    count = 64 // live.slots
    for lap in range(4):
        live.ring.serve(*live.jobs(count, lap * count))
    expect(live.ring.half.free == 64, "64 free slots in the end", live.ring.half.free)


@case(
    "packed.event.device-area-controls-avail",
    "packed.event.reserved-zero",
    "packed.event.flags-3-reserved",
    packed=True,
)
def the_device_event_structure(ctx: Context) -> None:
    """The device's event suppression structure has no reserved value in it, ever."""
    live = ctx.live()
    at = live.ring.areas.device
    for seed in range(16):
        live.ring.serve(live.work.job(seed))
        flags = int.from_bytes(live.session.arena.memory.read(at + 2, 2), "little")
        expect(flags in (0, 1, 2), "event flags 0, 1 or 2, reserved bits 0", f"{flags:#06x}")


@case("packed.event.driver-area-controls-used", packed=True)
def the_driver_event_structure_stays(ctx: Context) -> None:
    """The device only reads the driver's event suppression structure."""
    live = ctx.live()
    at, memory = live.ring.areas.driver, live.session.arena.memory
    before = memory.read(at, 4)
    live.ring.serve(*live.jobs(8))
    expect(
        memory.read(at, 4) == before, "it stays as the driver wrote it", memory.read(at, 4).hex()
    )


@case(
    "packed.list.dev.one-used-per-list",
    "packed.wrap.device-toggle",
    packed=True,
)
def a_list_of_the_whole_ring(ctx: Context) -> None:
    """A list as long as the ring (row 16): the wrap is counted once, and the next used descriptor
    is in the first slot, with the other wrap. The ring has eight slots: a device that limits the
    length of a list allows as much."""
    live = ctx.live(size=8)
    for seed in range(6):
        job = live.work.job(seed)
        pieces = _eight(len(job.readable), job.writable)
        live.ring.add(job, pieces)
        live.ring.kick()
        live.ring.wait(1)
        entry = live.ring.entries[-1]
        expect(entry.slot == 0, "the used descriptor in slot 0", entry)
    wraps = [bool((entry.flags or 0) & USED) for entry in live.ring.entries]
    expect(wraps == [True, False] * 3, "wrap 1, 0, 1, 0, 1, 0", [int(wrap) for wrap in wraps])


def _eight(readable: int, writable: int) -> tuple[int, ...]:
    """Eight pieces of both parts together. Raises NotObservable for a request that is too short."""
    if readable + writable < 16:
        raise NotObservable("this device type's requests cannot be cut into eight pieces")
    if min(readable, writable) == 0:
        whole = [1] * 7 + [max(readable, writable) - 7]
        return (*whole, 0) if readable else (0, *whole)
    return (1, 1, 1, 1, 1, readable - 5, 0, 1, writable - 1)
