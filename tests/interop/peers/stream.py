"""See `virtq.testing.stream`, where this has moved."""

from virtq.testing.stream import Stream

__all__ = ["Stream"]
