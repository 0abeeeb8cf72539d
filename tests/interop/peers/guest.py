"""See `virtq.testing.guest`, where this has moved. The guests of these tests are made of what
`scripts/peers.sh` has put under `.peers/`."""

from typing import Final

from virtq.testing.guest import (
    KERNEL_PARAMETERS,
    GuestConfig,
    GuestError,
    GuestResult,
    GuestStalled,
    LinuxGuest,
    SavedGuest,
    run_guest,
    vhost_user,
    vhost_user_net,
)
from virtq.testing.parts import use

from .availability import guest_parts

use(guest_parts)

GUEST_TIMEOUT_S: Final = 300.0
"""When a guest is taken for one that hangs. It boots in some seconds; on a machine where others are
at work that is many times as long."""

__all__ = [
    "GUEST_TIMEOUT_S",
    "KERNEL_PARAMETERS",
    "GuestConfig",
    "GuestError",
    "GuestResult",
    "GuestStalled",
    "LinuxGuest",
    "SavedGuest",
    "run_guest",
    "vhost_user",
    "vhost_user_net",
]
