"""DPDK's testpmd on either side of a vhost-user socket."""

from virtq.bench.peers.testpmd import (
    START_TIMEOUT_S,
    ForwardStats,
    PortStats,
    Testpmd,
    TestpmdConfig,
    TestpmdError,
    VhostPort,
    VirtioUserPort,
)

__all__ = [
    "START_TIMEOUT_S",
    "ForwardStats",
    "PortStats",
    "Testpmd",
    "TestpmdConfig",
    "TestpmdError",
    "VhostPort",
    "VirtioUserPort",
]
