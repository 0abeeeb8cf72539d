"""Bytes and their meaning: what both twins of a device type must agree on.

One file per device type (`blk`, `net`), `layout` for structures described as dataclasses, `pcap`
for capture files. Nothing here knows queues, devices or drivers.
"""
