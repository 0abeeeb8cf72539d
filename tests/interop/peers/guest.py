"""See `virtq.testing.guest`, where this has moved. The guests of these tests are made of what
`scripts/peers.sh` has put under `.peers/`."""

from virtq.testing.guest import (
    KERNEL_PARAMETERS,
    GuestConfig,
    GuestError,
    GuestResult,
    LinuxGuest,
    SavedGuest,
    run_guest,
    vhost_user,
    vhost_user_net,
)
from virtq.testing.parts import use

from .availability import guest_parts

use(guest_parts)

__all__ = [
    "KERNEL_PARAMETERS",
    "GuestConfig",
    "GuestError",
    "GuestResult",
    "LinuxGuest",
    "SavedGuest",
    "run_guest",
    "vhost_user",
    "vhost_user_net",
]
