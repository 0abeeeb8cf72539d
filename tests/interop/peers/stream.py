"""What a peer prints, as it comes."""

from virtq.bench.peers.stream import Stream

__all__ = ["Stream"]
