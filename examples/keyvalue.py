"""A key-value store: b"get KEY", b"set KEY VALUE", b"del KEY". Queue "news" tells of changes."""

from dataclasses import dataclass
from enum import IntFlag

import virtq
from virtq.wire.layout import u32

Feature = IntFlag("Feature", ["READ_ONLY"])


@dataclass
class Config:
    keys: u32 = 0


class KeyValue(virtq.Device):
    device_id, feature_bits, optional_features = 62, Feature, Feature.READ_ONLY
    queues = (virtq.QueueSpec("commands"), virtq.QueueSpec("news", size=64, fills=True))
    config = Config()

    def __init__(self):
        self.store = {b"motto": b"in order"}

    def handle(self, request):
        changes = not self.driver_features & Feature.READ_ONLY
        match request.read(1024).split(b" ", 2):
            case [b"get", key] if key in self.store:
                return request.write(b"+" + self.store[key])
            case [b"set", key, value] if changes:
                self.store[key] = value
            case [b"del", key] if changes and key in self.store:
                del self.store[key]
            case _:
                return request.write(b"-")
        self.update_config(keys=len(self.store))
        self.supplies["news"].write(key)
        return request.write(b"+")
