"""The entropy device on the wire (VIRTIO 1.4, section 5.4): buffers to fill, and nothing else."""

from __future__ import annotations

DEVICE_ID = 4
QUEUE = "requestq"
