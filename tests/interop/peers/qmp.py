"""See `virtq.testing.qmp`, where this has moved."""

from virtq.testing.qmp import Monitor

__all__ = ["Monitor"]
