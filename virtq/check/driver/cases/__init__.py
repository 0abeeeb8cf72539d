"""The cases for drivers, a file for each area. Importing this registers them."""

from virtq.check.driver.cases import (
    features,
    in_order,
    indirect,
    init,
    malformed,
    notifications,
    packed,
    split,
    using,
)

__all__ = [
    "features",
    "in_order",
    "indirect",
    "init",
    "malformed",
    "notifications",
    "packed",
    "split",
    "using",
]
