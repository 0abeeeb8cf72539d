"""QEMU's own devices, driven from here (VIRTIO 1.4, sections 4.1 and 4.2).

QEMU is started with a machine whose processor halts at once. Its devices stay, and answer register
accesses that arrive over the qtest socket. Guest RAM is memory that both processes map, so rings
and buffers are used in place, and only registers go over the socket:

    client      the qtest protocol: one command, one reply, interrupt lines between
    machine     the QEMU process, its RAM, its monitor
    pci         the configuration mechanism, BARs and capabilities of the PCI bus
    virtio_pci  the registers of a virtio device on PCI (4.1)
    virtio_mmio the same as memory-mapped registers (4.2)
    notifier    the thread between eventfds and registers
    transport   all of it as a driver's transport
"""

from virtq.transports.qtest.transport import QtestTransport

__all__ = ["QtestTransport"]
