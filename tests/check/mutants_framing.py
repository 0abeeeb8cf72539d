"""Devices that rely on how a driver cuts its buffers (2.7.4)."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference import Reference
from virtq.model.memory import Taken


@catches("framing.any_cut", "framing.a_long_chain")
class HeaderInOnePiece(Reference):
    def handle(self, buffer: Taken) -> int:
        if buffer.pieces[0].length != 16:
            raise ValueError("the first descriptor is not the header")
        return super().handle(buffer)
