"""Tests against real peers: QEMU with a Linux guest, DPDK, qemu-storage-daemon."""
