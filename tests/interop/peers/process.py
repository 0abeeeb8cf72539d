"""See `virtq.testing.process`, where this has moved."""

from virtq.testing.process import TERM_GRACE_S, PeerError, Process

__all__ = ["TERM_GRACE_S", "PeerError", "Process"]
