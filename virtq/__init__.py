"""VIRTIO in Python, both halves of it: devices, drivers, and the rings between them.

class Shout(virtq.Device):
    device_id = 63
    queues = (virtq.QueueSpec("requests", size=256),)

    def handle(self, request):
        return request.write(request.read().upper())

virtq.serve(Shout(), "vhost-user:/run/shout.sock")

with virtq.connect("vhost-user:/run/shout.sock", want=virtq.F.IN_ORDER) as driver:
    assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"
"""

from virtq._core import Memory
from virtq.connecting import connect, connect_async
from virtq.device import Device, QueueSpec
from virtq.driver import Driver
from virtq.errors import (
    ConfigError,
    DeviceReset,
    FeatureError,
    GuestMemoryError,
    PeerGone,
    QueueFull,
    RequestError,
    RingFault,
    StaleBuffer,
    StatusError,
    TranslationMiss,
    TransportError,
    UriError,
    VirtqError,
)
from virtq.features import Change, F, RingKind
from virtq.handlers import handles, handles_batch
from virtq.memory import Arena, Buffer
from virtq.queue import Batch, DeviceQueue, DriverQueue, Position, Request, Used
from virtq.serving import serve, serve_all, serve_async
from virtq.supply import Supply

__all__ = [
    "Arena",
    "Batch",
    "Buffer",
    "Change",
    "ConfigError",
    "Device",
    "DeviceQueue",
    "DeviceReset",
    "Driver",
    "DriverQueue",
    "F",
    "FeatureError",
    "GuestMemoryError",
    "Memory",
    "PeerGone",
    "Position",
    "QueueFull",
    "QueueSpec",
    "Request",
    "RequestError",
    "RingFault",
    "RingKind",
    "StaleBuffer",
    "StatusError",
    "Supply",
    "TranslationMiss",
    "TransportError",
    "UriError",
    "Used",
    "VirtqError",
    "connect",
    "connect_async",
    "handles",
    "handles_batch",
    "serve",
    "serve_all",
    "serve_async",
]
