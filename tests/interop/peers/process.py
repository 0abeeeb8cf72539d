"""Peers as processes."""

from virtq.bench.peers.process import TERM_GRACE_S, PeerError, Process

__all__ = ["TERM_GRACE_S", "PeerError", "Process"]
