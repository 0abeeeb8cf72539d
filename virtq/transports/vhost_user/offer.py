"""Which features a back-end offers and a front-end takes: the usual ones, and changes to them.

`+INBAND_NOTIFICATIONS,-CONFIGURE_MEM_SLOTS` adds one and leaves one out, by the names of `P`. A
feature may be added that an end has but does not show unasked: INBAND_NOTIFICATIONS, because QEMU
acknowledges it and then neither sends such notifications nor understands them.
"""

from __future__ import annotations

from typing import NamedTuple, Self, TypeGuard

from virtq.errors import FeatureError
from virtq.features import F
from virtq.transports.base import DeviceSide, StatefulDevice, TranslatedDevice
from virtq.transports.vhost_user import postcopy
from virtq.transports.vhost_user.messages import TRANSPORT_FEATURES, P

OFFERED = (
    P.MQ
    | P.LOG_SHMFD
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.BACKEND_SEND_FD
    | P.INFLIGHT_SHMFD
    | P.GET_VRING_BASE_INFLIGHT
    | P.RESET_DEVICE
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
)
"""Protocol features of every back-end; CONFIG comes with a configuration space. One that a device
type adds (RARP, MTU) goes here, and its requests into `requests.HANDLERS`."""

WANTED = (
    P.MQ
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.CONFIG
    | P.RESET_DEVICE
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
    | P.DEVICE_STATE
    | P.INFLIGHT_SHMFD
    | P.GET_VRING_BASE_INFLIGHT
)
"""Protocol features that the front-end takes where they are offered."""

UNASKED_FOR = P.INBAND_NOTIFICATIONS
"""What both ends have, and offer or take only when told."""

_INBAND_NEEDS = P.BACKEND_REQ | P.REPLY_ACK


class ProtocolChange(NamedTuple):
    """How a set of protocol features differs from the usual one."""

    add: P = P(0)
    remove: P = P(0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From names with a sign before each and commas between. Raises FeatureError."""
        chosen = {"+": P(0), "-": P(0)}
        for word in filter(None, (word.strip() for word in text.split(","))):
            sign, name = word[0], word[1:].upper()
            if sign not in chosen:
                raise FeatureError(f"protocol feature {word!r}: it begins with neither + nor -")
            if name not in P.__members__:
                raise FeatureError(f"no protocol feature is called {word[1:]!r}")
            chosen[sign] |= P[name]
        if both := chosen["+"] & chosen["-"]:
            raise FeatureError(f"protocol feature {both.name} is both added and removed")
        return cls(chosen["+"], chosen["-"])

    def apply(self, usual: P) -> P:
        """The set, changed. Raises FeatureError for a feature that cannot be had."""
        if strange := self.add & ~(usual | UNASKED_FOR):
            raise FeatureError(f"protocol feature {strange.name} cannot be had here")
        changed = (usual | self.add) & ~self.remove
        if P.INFLIGHT_SHMFD not in changed:
            changed &= ~P.GET_VRING_BASE_INFLIGHT  # it means nothing without
        if P.INBAND_NOTIFICATIONS in changed and (missing := _INBAND_NEEDS & ~changed):
            raise FeatureError(f"INBAND_NOTIFICATIONS needs {missing.name}")
        return changed


AS_USUAL = ProtocolChange()


def offered_features(device: DeviceSide) -> int:
    """The feature bits that a back-end for this device offers."""
    # vhost-user has messages for the status, but none that says how to suspend with them.
    features = int(device.offered_features) & ~(TRANSPORT_FEATURES | F.SUSPEND)
    if not isinstance(device, TranslatedDevice):
        features &= ~int(F.ACCESS_PLATFORM)
    return features | TRANSPORT_FEATURES


def offered_protocol_features(device: DeviceSide, change: ProtocolChange = AS_USUAL) -> P:
    """The protocol features that a back-end for this device offers. Raises FeatureError."""
    usual = OFFERED | (P.CONFIG if device.config_size else P(0))
    if has_state(device):
        usual |= P.DEVICE_STATE
    if postcopy.is_possible():
        usual |= P.PAGEFAULT
    return change.apply(usual)


def has_state(device: DeviceSide) -> TypeGuard[StatefulDevice]:
    """Whether the device has something to say that its rings do not (DEVICE_STATE)."""
    return isinstance(device, StatefulDevice) and device.has_state
