"""Indirect descriptors (2.7.5.3, 2.8.7)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.features import F
from virtq.model.memory import DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor


def _live(ctx: Context) -> Live:
    live = ctx.live(add=F.INDIRECT_DESC, indirect_length=8)
    job = live.work.job(0)
    if not (job.readable and job.writable):
        raise NotObservable("this device type's requests have one descriptor")
    return live


@case("framing.dev.no-layout-assumption", needs=F.INDIRECT_DESC)
def tables(ctx: Context) -> None:
    """Buffers in indirect tables are served, and take one slot each."""
    live = _live(ctx)
    live.ring.serve(*live.jobs(16))
    slots = [entry.slot for entry in live.ring.entries]
    expect(len(set(slots)) == len(slots) and max(slots) < 16, "one slot for each buffer", slots)


@case("split.indirect.dev.ignore-write-flag", needs=F.INDIRECT_DESC, packed=False)
def write_on_the_referring_descriptor(ctx: Context) -> None:
    """WRITE on the descriptor that refers to a table is ignored."""
    live = _live(ctx)
    live.ring.add(live.work.job(0))
    ring, head = live.ring.split_ring, live.ring.half.added[-1].id
    ring.set_desc(head, ring.desc(head)._replace(flags=INDIRECT | WRITE))
    live.ring.kick()
    live.ring.wait(1)


@case("packed.indirect.dev.ignore-write-on-ref", needs=F.INDIRECT_DESC, packed=True)
def write_on_the_referring_descriptor_packed(ctx: Context) -> None:
    """WRITE on the descriptor that refers to a table is ignored."""
    live = _live(ctx)
    live.ring.add(live.work.job(0))
    live.ring.change_head(lambda d: d._replace(flags=d.flags | WRITE))
    live.ring.kick()
    live.ring.wait(1)


@case("packed.indirect.dev.ignore-other-flags", needs=F.INDIRECT_DESC, packed=True)
def noise_in_a_table(ctx: Context) -> None:
    """In a packed table only WRITE counts: NEXT, AVAIL, USED and the Buffer ID are ignored."""
    live = _live(ctx)
    sent = live.ring.add(live.work.job(0))
    memory, head = live.session.arena.memory, live.ring.head()
    for entry in range(head.len // DESCRIPTOR_BYTES):
        at = head.addr + entry * DESCRIPTOR_BYTES
        read = PackedDescriptor.load(memory, at)
        noise = read._replace(flags=read.flags | NEXT | 1 << 7 | 1 << 15, id=0xBEEF)
        noise.store(memory, at)
    live.ring.kick()
    used = live.ring.wait(1)
    expect(used == [sent], "the buffer served", "another one")


@case("split.indirect.dev.direct-then-indirect", needs=F.INDIRECT_DESC, packed=False)
def direct_then_indirect(ctx: Context) -> None:
    """A chain of direct descriptors that ends in a table is one buffer."""
    live = ctx.live(add=F.INDIRECT_DESC)
    job = live.work.job(0)
    if not (job.readable and job.writable):
        raise NotObservable("this device type's requests have one descriptor")
    live.ring.add(job)
    ring = live.ring.split_ring
    added = live.ring.half.added[-1]
    last = added.slots[-1]
    moved = ring.desc(last)
    table = live.session.arena.alloc(DESCRIPTOR_BYTES)
    SplitDescriptor(moved.addr, moved.len, WRITE, 0).store(live.session.arena.memory, table.addr)
    ring.set_desc(last, SplitDescriptor(table.addr, DESCRIPTOR_BYTES, INDIRECT, 0))
    live.ring.kick()
    live.ring.wait(1)
