"""QEMU's own devices, driven from here (VIRTIO 1.4, sections 4.1 and 4.2).

QEMU is started with a machine whose processor halts at once. Its devices stay, and answer register
accesses that arrive over the qtest socket. Guest RAM is memory that both processes map, so rings
and buffers are used in place, and only registers go over the socket:

    access      what is asked of a machine: accesses to ports and addresses
    client      the qtest protocol: one command, one reply, interrupt lines between
    machine     the QEMU process, its RAM, its monitor
    pci         the configuration mechanism, BARs and capabilities of the PCI bus
    capabilities, msix   where a virtio function's structures are, and its interrupt vectors
    virtio_pci  the registers of a virtio device on PCI (4.1)
    virtio_mmio the same as memory-mapped registers (4.2)
    notifier    the thread between eventfds and registers
    by_registers a driver's transport on registers, whoever answers the accesses
    transport   the same on a device of a QEMU that it starts
"""

from virtq.transports.qtest.transport import QtestTransport

__all__ = ["QtestTransport"]
