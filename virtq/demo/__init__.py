"""Both halves of a virtqueue at work, in two processes, in every kind of ring.

A second process (`server`) serves a disk and a hub with two network devices for each of the four
kinds of ring, over vhost-user sockets in a temporary directory. This process drives them (`drive`):
it writes, reads and compares disk blocks, and sends frames through the hub and compares what
arrives. Speed is a side effect; that every byte is right is the point. `picture` draws it.
"""

from virtq.demo.run import DEVICES, Outcome, run_demo

__all__ = ["DEVICES", "Outcome", "run_demo"]
