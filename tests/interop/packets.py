"""Packets that are told apart by every byte."""

from __future__ import annotations

import random

_ADDRESSES = bytes.fromhex("020000000001 020000000002 88b5")


def made_up(count: int, seed: int) -> list[bytes]:
    """Frames of all sizes and of any content, behind addresses that are proper."""
    dice = random.Random(seed)
    sizes = [dice.randint(60, 1514) for _ in range(count)]
    return [_ADDRESSES + dice.randbytes(size - len(_ADDRESSES)) for size in sizes]


def swapped(frame: bytes) -> bytes:
    """The frame as testpmd returns it in its mode macswap."""
    return frame[6:12] + frame[:6] + frame[12:]
