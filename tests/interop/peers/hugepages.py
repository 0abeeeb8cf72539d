"""Huge pages for DPDK."""

from virtq.bench.peers.hugepages import reserve

__all__ = ["reserve"]
