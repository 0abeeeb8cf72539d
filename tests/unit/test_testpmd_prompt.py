"""What testpmd prints at its prompt, told apart."""

from __future__ import annotations

import os

import pytest

from virtq.bench.peers.testpmd import PROMPT
from virtq.testing.stream import Stream

EVENT = b"\nPort 0: link state change event\n"


@pytest.mark.parametrize(
    ("printed", "answer"),
    [
        (b"Link status: up\ntestpmd> ", b"Link status: up\n"),
        (b"Link status: up\n" + EVENT + b"testpmd> ", b"Link status: up\n" + EVENT),
        (b"Link status: up\ntest" + EVENT + b"pmd> ", b"Link status: up\n"),
        (b"Link status: up\nte\nst" + EVENT[1:] + b"pmd> ", b"Link status: up\n"),
        (b"t" + EVENT + b"es" + EVENT + b"tpmd>" + EVENT + b" ", b""),
    ],
)
def test_an_event_may_be_told_within_the_prompt(printed: bytes, answer: bytes) -> None:
    end, peer = os.pipe()
    stream = Stream(end)
    try:
        os.write(peer, printed[:-1])
        assert stream.find(PROMPT, 0, 0.0) is None
        os.write(peer, printed[-1:])
        assert stream.find(PROMPT, 0, 30.0) == (len(answer), len(printed))
    finally:
        os.close(peer)
        stream.join()
