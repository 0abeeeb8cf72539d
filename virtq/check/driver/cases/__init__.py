"""The cases for drivers, a file for each area. Importing this registers them."""

from virtq.check.driver.cases import in_order, indirect, notifications, packed, split, using

__all__ = ["in_order", "indirect", "notifications", "packed", "split", "using"]
