"""The cases for drivers, a file for each area. Importing this registers them."""

from virtq.check.driver.cases import packed, split

__all__ = ["packed", "split"]
