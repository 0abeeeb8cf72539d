"""How a PCI function interrupts: the ISR status and INTx, MSI-X vectors (4.1.4.5, 4.1.5)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.registers import (
    break_queue,
    change_config,
    change_needs,
    may_change,
    pci,
    see_a_change,
    serve,
    submit,
)
from virtq.check.session import Session
from virtq.transports.qtest.msix import NO_VECTOR, Entry, Msix
from virtq.transports.qtest.virtio_pci import PciRegisters

_QUEUE, _CONFIG = 1, 2
"""Bits of the ISR status."""
_MAPPINGS_MAX = 2000
"""Of so many a table is tried in full; of a larger one, some vectors."""

# The ISR status


def _wait_intx(session: Session, registers: PciRegisters) -> None:
    for _ in session.patience("an INTx interrupt, which the PCI status register tells"):
        if registers.function.interrupt_status:
            return


@case("pci.isr.dev.queue-bit", bus="pci")
def the_queue_bit(ctx: Context) -> None:
    """Without MSI-X, the queue bit of the ISR status is set by the time that a used buffer
    notification comes."""
    with pci(ctx, msix=False) as (session, registers):
        live = ctx.live(session=session)
        for seed in range(3):
            registers.isr()
            serve(live, registers, 1, seed)
            _wait_intx(session, registers)
            status = registers.isr()
            expect(status & _QUEUE, "the queue bit (1) set with an interrupt", f"{status:#x}")


@case("pci.isr.dev.config-bit", bus="pci", rings=False)
def the_configuration_bit(ctx: Context) -> None:
    """Without MSI-X, the configuration bit of the ISR status is set by the time that a
    configuration change notification comes."""
    with pci(ctx, msix=False) as (session, registers):
        ctx.live(add=change_needs(session), session=session)
        registers.isr()
        change_config(session)
        _wait_intx(session, registers)
        status = registers.isr()
        expect(status & _CONFIG, "the configuration bit (2) set with an interrupt", f"{status:#x}")


@case("pci.isr.dev.pci-status-or", bus="pci", rings=False)
def the_interrupt_status(ctx: Context) -> None:
    """Without MSI-X, the interrupt bit of the PCI status register is set while any bit of the ISR
    status is, and not otherwise."""
    with pci(ctx, msix=False) as (session, registers):
        live = ctx.live(add=change_needs(session) & session.offered, session=session)
        registers.isr()
        for seed in range(2):
            expect(
                not registers.function.interrupt_status,
                "the interrupt bit of the PCI status register off once the ISR status was read",
                "it is set",
            )
            serve(live, registers, 1, seed)
            _wait_intx(session, registers)
            status = registers.isr()
            expect(status, "a bit of the ISR status for the interrupt", "none")
        if may_change(session):
            change_config(session)
            _wait_intx(session, registers)
            registers.isr()
        expect(
            not registers.function.interrupt_status,
            "the interrupt bit of the PCI status register off once the ISR status was read",
            "it is set",
        )


@case("pci.isr.dev.read-clears", bus="pci", rings=False)
def reading_clears(ctx: Context) -> None:
    """Reading the ISR status clears it: with nothing new, it reads 0 the second time."""
    with pci(ctx, msix=False) as (session, registers):
        live = ctx.live(session=session)
        for seed in range(3):
            submit(live, registers, live.jobs(1, seed))
            for _ in session.patience("a bit of the ISR status"):
                if registers.isr():
                    break
            live.ring.wait(1)
            for _ in session.moment():  # the buffer is used, and whatever comes of it has come
                pass
            registers.isr()
            status = registers.isr()
            expect(status == 0, "an ISR status of 0 after it was read", f"{status:#x}")


# MSI-X vectors


def _msix(registers: PciRegisters) -> Msix:
    if registers.msix is None:
        raise NotObservable("the function has no MSI-X")
    return registers.msix


class _Events:
    """What can be mapped to a vector: configuration changes (None), and each queue."""

    def __init__(self, registers: PciRegisters) -> None:
        self._registers = registers
        self.all = (None, *range(min(registers.queue_count, 64)))

    def map(self, event: int | None, vector: int) -> int:
        """Returns what the field reads then."""
        self._registers.put(self._field(event), vector)
        return self.vector(event)

    def vector(self, event: int | None) -> int:
        return self._registers.get(self._field(event))

    def _field(self, event: int | None) -> str:
        if event is None:
            return "config_msix_vector"
        self._registers.put("queue_select", event)
        return "queue_msix_vector"


def _name(event: int | None) -> str:
    return "configuration changes" if event is None else f"queue {event}"


def _number(vector: int) -> str:
    return "NO_VECTOR" if vector == NO_VECTOR else str(vector)


def _vectors(msix: Msix, events: _Events) -> list[int]:
    if msix.size * len(events.all) <= _MAPPINGS_MAX:
        return list(range(msix.size))
    powers = {1 << bit for bit in range(msix.size.bit_length())}
    return sorted({0, *(one for one in powers if one < msix.size), msix.size - 1})


@case("pci.msix.dev.vector-count", bus="pci", rings=False)
def the_table_size(ctx: Context) -> None:
    """A function with MSI-X has 2 vectors or more (SHOULD)."""
    with pci(ctx) as (_, registers):
        size = _msix(registers).size
        expect(2 <= size <= 0x800, "2 to 0x800 vectors", size)


@case("pci.msix.dev.report-count", bus="pci", rings=False)
def the_table_is_there(ctx: Context) -> None:
    """There are as many vectors as Table Size tells: each has an entry of its own."""
    with pci(ctx) as (_, registers):
        msix = _msix(registers)
        wanted = {
            vector: Entry(0x1000_0000 + 0x1000 * vector, vector + 1, True)
            for vector in range(msix.size)
        }
        for vector, entry in wanted.items():
            msix.set_entry(vector, entry)
        for vector, entry in wanted.items():
            found = msix.entry(vector)
            expect(found == entry, f"{entry} of {msix.size} as it was written", found)


@case("pci.msix.dev.map-any", bus="pci", rings=False)
def any_event_to_any_vector(ctx: Context) -> None:
    """Configuration changes and each queue can be mapped to each vector of the table."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for event in events.all:
            for vector in _vectors(msix, events):
                came = events.map(event, vector)
                expect(came == vector, f"{_name(event)} mapped to vector {vector}", _number(came))


@case("pci.msix.dev.map-any", bus="pci")
def messages_of_the_mapped_vector(ctx: Context) -> None:
    """A queue's notification is the message of the vector that it is mapped to, the first of the
    table or the last."""
    for last in (False, True):
        with pci(ctx) as (session, registers):
            msix = _msix(registers)
            vector = msix.size - 1 if last else 0
            registers.queue_vectors = dict.fromkeys(range(registers.queue_count), vector)
            live = ctx.live(session=session)
            msix.take()
            serve(live, registers, 2)
            came: set[int] = set()
            for _ in session.patience(f"the message of vector {vector}"):
                came |= msix.take()
                if vector in came:
                    break
            expect(came == {vector}, f"a message of vector {vector} alone", sorted(came))


@case("pci.msix.dev.unmap-any", bus="pci", rings=False)
def unmap(ctx: Context) -> None:
    """Configuration changes and each queue can be unmapped again."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for event in events.all:
            events.map(event, msix.size - 1)
        for event in events.all:
            came = events.map(event, NO_VECTOR)
            expect(came == NO_VECTOR, f"{_name(event)} mapped to NO_VECTOR", _number(came))


@case("pci.msix.dev.vector-readback", bus="pci", rings=False)
def each_event_has_its_vector(ctx: Context) -> None:
    """The fields show for each event the vector that it is mapped to, whatever others are; and
    NO_VECTOR for one that is mapped to none."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for shift in range(3):
            wanted = {
                event: NO_VECTOR if (i + shift) % 3 == 2 else (i + shift) % msix.size
                for i, event in enumerate(events.all)
            }
            for event, vector in wanted.items():
                events.map(event, vector)
            for event, vector in wanted.items():
                came = events.vector(event)
                expect(came == vector, f"{_number(vector)} for {_name(event)}", _number(came))


@case("pci.msix.dev.reset-unmaps", bus="pci", rings=False)
def reset_unmaps(ctx: Context) -> None:
    """After a reset every event is unmapped."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for event in events.all:
            events.map(event, msix.size - 1)
        session.reset()
        for event in events.all:
            came = events.vector(event)
            expect(came == NO_VECTOR, f"NO_VECTOR for {_name(event)} after a reset", _number(came))


@case("pci.msix.dev.map-should-not-fail", bus="pci", rings=False)
def map_again_and_again(ctx: Context) -> None:
    """Mapping does not fail for what was mapped before, however often (SHOULD NOT)."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for turn in range(100):
            for i, event in enumerate(events.all[:4]):
                vector = (turn + i) % msix.size
                came = events.map(event, vector)
                expect(
                    came == vector,
                    f"{_name(event)} mapped to vector {vector}, for the {turn + 1}th time",
                    _number(came),
                )
            if turn % 2:
                for event in events.all[:4]:
                    events.map(event, NO_VECTOR)


@case("pci.msix.dev.map-failure-report", bus="pci", rings=False)
def a_vector_that_is_not_there(ctx: Context) -> None:
    """An event cannot be mapped to a vector behind the table; its field reads NO_VECTOR then."""
    with pci(ctx) as (session, registers):
        msix, events = _msix(registers), _Events(registers)
        session.negotiate(ctx.features(session))
        for event in events.all:
            for vector in (msix.size, 0x800, 0xFFFE):
                events.map(event, 0)
                came = events.map(event, vector)
                expect(
                    came == NO_VECTOR,
                    f"NO_VECTOR for {_name(event)} mapped to vector {vector} of {msix.size}",
                    _number(came),
                )


# Notifications with MSI-X


@case("pci.usednotify.dev.no-vector", bus="pci")
def a_queue_without_a_vector(ctx: Context) -> None:
    """With MSI-X on, a queue that is mapped to NO_VECTOR does not interrupt."""
    with pci(ctx) as (session, registers):
        msix = _msix(registers)
        registers.queue_vectors = dict.fromkeys(range(registers.queue_count), NO_VECTOR)
        live = ctx.live(session=session)
        msix.take()
        for first in range(0, 6, 2):
            serve(live, registers, 2, first)
        _expect_no_interrupt(session, registers, msix)


@case("pci.cfgnotify.dev.no-vector", bus="pci", rings=False)
def a_configuration_without_a_vector(ctx: Context) -> None:
    """With MSI-X on, configuration changes that are mapped to NO_VECTOR do not interrupt."""
    with pci(ctx) as (session, registers):
        msix = _msix(registers)
        registers.config_vector = NO_VECTOR
        ctx.live(add=change_needs(session), session=session)
        msix.take()
        see_a_change(session, registers)
        _expect_no_interrupt(session, registers, msix)


def _expect_no_interrupt(session: Session, registers: PciRegisters, msix: Msix) -> None:
    for _ in session.moment():
        came = msix.take()
        expect(not came, "no interrupt", f"messages of vectors {sorted(came)}")
    expect(not registers.function.interrupt_status, "no interrupt", "INTx")


@case("pci.cfgnotify.dev.shared-interrupt", bus="pci", rings=False)
def one_vector_for_all(ctx: Context) -> None:
    """Configuration changes and queues that share a vector have its message each."""
    with pci(ctx) as (session, registers):
        msix = _msix(registers)
        registers.queue_vectors = dict.fromkeys(range(registers.queue_count), 0)
        live = ctx.live(add=change_needs(session), session=session)
        for seed in range(2):
            msix.take()
            serve(live, registers, 1, seed)
            _wait_message(session, msix, "of a used buffer")
            change_config(session)
            _wait_message(session, msix, "of a configuration change")


@case("status.dev.needs-reset-config-notify", bus="pci", packed=False)
def asking_for_a_reset(ctx: Context) -> None:
    """A live device that sets DEVICE_NEEDS_RESET sends a configuration change notification."""
    with pci(ctx) as (session, registers):
        msix = _msix(registers)
        live = ctx.live(session=session)
        serve(live, registers, 1)
        msix.take()
        break_queue(live, registers)
        _wait_message(session, msix, "of DEVICE_NEEDS_RESET")


def _wait_message(session: Session, msix: Msix, what: str) -> None:
    for _ in session.patience(f"the message of vector 0 {what}"):
        if 0 in msix.take():
            return
