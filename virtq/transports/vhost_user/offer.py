"""Which protocol features an end takes part in, when that is not its usual set.

`+INBAND_NOTIFICATIONS,-CONFIGURE_MEM_SLOTS` adds one and leaves one out, by the names of `P`. A
feature may be added that an end has but does not show unasked: INBAND_NOTIFICATIONS, because QEMU
acknowledges it and then neither sends such notifications nor understands them.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from virtq.errors import FeatureError
from virtq.transports.vhost_user.messages import P

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
