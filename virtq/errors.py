"""Every error that virtq raises. Each text names the fact and the place."""

from __future__ import annotations

from virtq._core import (
    MemoryError_ as GuestMemoryError,
)
from virtq._core import (
    QueueFull,
    RingFault,
    StaleBuffer,
    TranslationMiss,
    VirtqError,
)


class FeatureError(VirtqError):
    """A set of features that cannot work."""


class StatusError(VirtqError):
    """A device status transition that section 2.1 does not allow, or a device that refuses one."""


class ConfigError(VirtqError):
    """A configuration space access out of range or to a field that is not writable."""


class DeviceReset(VirtqError):
    """The driver reset the device while something waited for it."""


class TransportError(VirtqError):
    """The other end of a transport broke its protocol, or an endpoint cannot be opened."""


class PeerGone(TransportError):
    """The other end closed the connection or died."""


class UndrivableDevice(TransportError):
    """A device that no driver can do anything with: on its bus it lacks what it must have. The id
    of the requirement is in `requirement`."""

    def __init__(self, text: str, requirement: str) -> None:
        super().__init__(f"{text} [{requirement}]")
        self.requirement = requirement


class RequestError(VirtqError):
    """The device answered a request with a failure status."""


class UriError(VirtqError):
    """A URI or option that cannot be understood."""


__all__ = [
    "ConfigError",
    "DeviceReset",
    "FeatureError",
    "GuestMemoryError",
    "PeerGone",
    "QueueFull",
    "RequestError",
    "RingFault",
    "StaleBuffer",
    "StatusError",
    "TranslationMiss",
    "TransportError",
    "UndrivableDevice",
    "UriError",
    "VirtqError",
]
