"""See `virtq.testing.serving`, where this has moved."""

from virtq.testing.serving import START_TIMEOUT_S, Report, Serving, ServingError

__all__ = ["START_TIMEOUT_S", "Report", "Serving", "ServingError"]
