"""See `virtq.testing.initramfs`, where this has moved."""

from virtq.testing.initramfs import MARK, Archive, base, overlay

__all__ = ["MARK", "Archive", "base", "overlay"]
