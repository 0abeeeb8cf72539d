"""The cases for drivers, a file for each area. Importing this registers them."""

from virtq.check.driver.cases import (
    blk,
    features,
    in_order,
    indirect,
    init,
    malformed,
    net,
    notifications,
    others,
    packed,
    split,
    using,
)

__all__ = [
    "blk",
    "features",
    "in_order",
    "indirect",
    "init",
    "malformed",
    "net",
    "notifications",
    "others",
    "packed",
    "split",
    "using",
]
