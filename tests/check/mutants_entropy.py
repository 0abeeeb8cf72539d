"""Entropy devices that get one thing wrong."""

from __future__ import annotations

import os

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_entropy import Entropy, Sparing
from virtq.model.memory import Taken

REFERENCES["entropy"] = (Entropy, Sparing)


@catches("entropy.a_byte_or_more")
class NothingForOneByte(Entropy):
    def random(self, room: int) -> bytes:
        return os.urandom(room) if room > 1 else b""


@catches("entropy.a_byte_or_more")
class CountsItsPool(Entropy):
    def handle(self, buffer: Taken) -> int:
        super().handle(buffer)
        return 64


@catches("entropy.the_length_is_true")
class FillsHalf(Entropy):
    def handle(self, buffer: Taken) -> int:
        buffer.write(self.random(buffer.writable // 2))
        return buffer.writable


@catches("entropy.the_length_is_true")
class IsNotRandom(Entropy):
    def random(self, room: int) -> bytes:
        return bytes(i * 7 % 256 for i in range(room))
